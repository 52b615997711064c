"""What an adapter makes of a server: the requests of its protocol, and what it says of itself and of us."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from services.runner.http_child.exchange import Answer, Request


@dataclass(frozen=True)
class Udp:
    """Where datagrams are echoed, and for whom."""

    port: int
    token: bytes
    datagrams: int
    seconds: float


def no_time(answer: Answer) -> float:
    """Return 0: most servers do not say how long an answer took them."""
    del answer
    return 0


@dataclass(frozen=True)
class Service:
    """A server that was found to serve."""

    name: str
    ping: Request
    """Answered at once, with nothing."""
    download: Request
    """Answered with as much as the server gives at once."""
    upload_target: str
    upload_bytes: int
    """How long one upload is."""
    server: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()
    udp: Udp | None = None
    answering_s: Callable[[Answer], float] = no_time
    """How long the server took to answer, where it says so: no part of the line's latency."""

    def upload(self, size: int) -> Request:
        """Return the request that uploads so many bytes."""
        return Request("POST", self.upload_target, self.ping.host, self.headers, size)
