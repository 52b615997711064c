"""The runner: performs the measurements of one site.

Consumes: ticks of its site (stream TICKS, durable pull consumer, one at a time).
Publishes: one result per run (stream RESULTS), progress while it measures (core NATS), a heartbeat (bucket of runners).
"""
