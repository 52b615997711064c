"""The test server: what a speed test on a LAN, a VPN or between sites is run against.

Speaks LibreSpeed (`/garbage`, `/empty`, `/getIP`, the same with `.php` and under `/backend/`, `/.well-known/librespeed`) and
echoes UDP datagrams of who asked `/.well-known/refresher` for a token. Needs neither bus nor database.
A *transfer* is one download or one upload, a request; the *test* of a client is made of many.
"""
