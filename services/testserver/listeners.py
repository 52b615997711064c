"""The sockets that it listens on."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.testserver.settings import TestserverSettings
from shared.errors import ConfigurationError

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
    hosts = [host.strip() for host in settings.testserver_host.split(",") if host.strip()]
    with contextlib.ExitStack() as opened:
        tcp, udp = list(_bound(opened, hosts, settings.testserver_port, socket.SOCK_STREAM)), []
        if settings.testserver_udp:
            udp = list(_bound(opened, hosts, settings.testserver_udp_port, socket.SOCK_DGRAM))
        opened.pop_all()
    return Listeners(tcp, udp)


def _bound(opened: contextlib.ExitStack, hosts: list[str], port: int, kind: socket.SocketKind) -> Iterator[socket.socket]:
    for host in hosts:
        try:
            for family, _, _, _, address in dict.fromkeys(socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)):
                bound = opened.enter_context(socket.socket(family, kind))
                _bind(bound, (address[0], port, *address[2:]))
                port = port_of(bound)  # a free one is the same on every address
                yield bound
        except OSError as error:
            protocol = "TCP" if kind is socket.SOCK_STREAM else "UDP"
            advice = "choose another port" if error.errno == errno.EADDRINUSE else "name an address of this machine"
            raise ConfigurationError(f"cannot listen on {host}, {protocol} port {port}: {error.strerror or error}; {advice}.") from None


def _bind(bound: socket.socket, address: tuple[Any, ...]) -> None:
    bound.setblocking(False)
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if bound.type == socket.SOCK_STREAM:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    else:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
        bound.bind(address)


def port_of(bound: socket.socket) -> int:
    """Return the port that a socket was given."""
    return int(bound.getsockname()[1])


def written(bound: socket.socket) -> str:
    """Return address and port of a socket, as they stand in a URL."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if bound.family == socket.AF_INET6 else f"{host}:{port}"
