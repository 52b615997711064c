"""The sockets that it listens on."""

import socket
from dataclasses import dataclass

from services.testserver.settings import TestserverSettings
from shared.listening import bound

BACKLOG = 512
UDP_BUFFER_BYTES = 1_048_576
"""A burst of datagrams waits here while transfers have their turn: lost by this server, they would pass for the line's loss."""


@dataclass(frozen=True)
class Listeners:
    """The sockets; each list has the same port on every address."""

    tcp: list[socket.socket]
    udp: list[socket.socket]


def listen(settings: TestserverSettings) -> Listeners:
    """Open every socket, so that nothing is served where one port is taken.

    Raises: ConfigurationError that says which cannot be opened, and why.
    """
    hosts = settings.testserver_host
    tcp = bound(hosts, settings.testserver_port)
    udp = bound(hosts, settings.testserver_udp_port, socket.SOCK_DGRAM) if settings.testserver_udp else []
    for each in udp:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
    for each in tcp:
        each.listen(BACKLOG)
    return Listeners(tcp, udp)


def written(sock: socket.socket) -> str:
    """Return address and port of a socket, as they stand in a URL."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"
