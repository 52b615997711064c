"""The UDP echo: a datagram comes back unchanged to who holds a token, and to nobody else.

A datagram is the token (16 bytes), a sequence number (4 bytes, big endian) and anything, up to 1,472 bytes in all: one packet
of Ethernet. The answer is never longer than the question, and goes to an address that has shown over TCP that it is its own:
nobody can be flooded through this server.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from services.testserver.addresses import plain
from services.testserver.metrics import Metrics
from services.testserver.tokens import TOKEN_BYTES, Tokens

SHORTEST = TOKEN_BYTES + 4
LONGEST = 1_472


class Echo(asyncio.DatagramProtocol):
    """Of one socket."""

    def __init__(self, tokens: Tokens, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._count = metrics.datagrams
        self._transport: asyncio.DatagramTransport
        self._full = False

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Remember where answers go."""
        self._transport = transport

    def pause_writing(self) -> None:
        """Lose what comes while the kernel takes no more, as any full line does."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on."""
        self._full = False

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Send it back, or drop it in silence: an answer to a stranger would be an answer to whoever he says he is."""
        fate = "malformed"
        if SHORTEST <= len(data) <= LONGEST:
            fate = self._tokens.spend(data[:TOKEN_BYTES], plain(addr[0]), self._clock())
        if fate == "echoed":
            if self._full:
                fate = "lost"
            else:
                self._transport.sendto(data, addr)
        self._count.labels(fate).inc()
