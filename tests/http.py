"""Plain HTTP to what tests start."""

import ssl
from typing import Any

import httpx

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody. A client of httpx without it reads all certificates of this machine first, which takes 30 ms of CPU."""

plain = httpx.Client(verify=NO_TLS, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""For single requests. It keeps no connection: what a test starts, it may also kill."""


def plain_client(url: str, timeout: float = 30, **options: Any) -> httpx.AsyncClient:
    """Return a client of what runs at a URL, which goes around any proxy."""
    return httpx.AsyncClient(base_url=url, timeout=timeout, verify=NO_TLS, trust_env=False, **options)
