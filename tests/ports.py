"""Ports for the servers of the tests: no two tests get the same one, whichever process they run in."""

import os
import random
import socket
from itertools import count

FIRST, PER_WORKER = 11_000, 3_000
"""Below the ports that Linux gives to outgoing connections (from 32,768): one of those may take a port that was just free."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 7
_numbers = count(random.randrange(PER_WORKER))  # another run on this machine starts elsewhere


def take() -> int:
    """Return a loopback port that is free and that no other test was given."""
    while True:
        port = FIRST + _worker * PER_WORKER + next(_numbers) % PER_WORKER
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def taken(*names: str) -> dict[str, int]:
    """Return a port for each name, as the embedded system remembers them in its `ports.json`."""
    return {name: take() for name in names}
