"""Plain HTTP to what tests start."""

import ssl
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody. A client of httpx without it reads all certificates of this machine first, which takes 30 ms of CPU."""

plain = httpx.Client(verify=NO_TLS, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""For single requests. It keeps no connection: what a test starts, it may also kill."""


def plain_client(url: str, timeout: float = 30, **options: Any) -> httpx.AsyncClient:
    """Return a client of what runs at a URL, which goes around any proxy."""
    return httpx.AsyncClient(base_url=url, timeout=timeout, verify=NO_TLS, trust_env=False, **options)


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path, deadline_s: float = 30) -> None:
    """Wait until a URL of a process answers with 200; what the process has written is told when it ends or takes too long."""
    end = time.monotonic() + deadline_s
    while True:
        with suppress(httpx.TransportError):
            if plain.get(url).status_code == httpx.codes.OK:
                return
        assert process.poll() is None, f"it ended before {url} was ready:\n{log.read_text()}"
        assert time.monotonic() < end, f"{url} is not ready:\n{log.read_text()}"
        time.sleep(0.05)


def sample(url: str, name: str) -> float:
    """Return the value of a sample as it stands in the metrics at a URL, labels included; 0 when it is not there."""
    for line in plain.get(url).text.splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0
