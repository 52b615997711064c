"""Sockets bound to the addresses that a setting names."""

import contextlib
import errno
import socket
from typing import Any

from shared.errors import ConfigurationError


class PortTaken(ConfigurationError):
    """Another program listens there; it may be about to end."""


def bound(hosts: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
    """Bind a socket to each address of the hosts, which are separated by commas, all with the same port; they listen on none yet.

    Raises: ConfigurationError that says which cannot be bound and why, PortTaken where that may pass.
    """
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for host in filter(None, map(str.strip, hosts.split(","))):
            try:
                for family, _, _, _, address in dict.fromkeys(socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)):
                    sockets.append(opened.enter_context(socket.socket(family, kind)))
                    _bind(sockets[-1], (address[0], port, *address[2:]))
                    port = port_of(sockets[-1])  # a free one is the same on every address
            except OSError as error:
                where = f"{host}, {'TCP' if kind is socket.SOCK_STREAM else 'UDP'} port {port}: {error.strerror or error}"
                if error.errno == errno.EADDRINUSE:
                    raise PortTaken(f"cannot listen on {where}; choose another port, or end the program that has it.") from None
                raise ConfigurationError(f"cannot listen on {where}; name an address of this machine.") from None
        opened.pop_all()
    return sockets


def _bind(unbound: socket.socket, address: tuple[Any, ...]) -> None:
    unbound.setblocking(False)
    if unbound.family == socket.AF_INET6:
        unbound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if unbound.type == socket.SOCK_STREAM:
        unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    unbound.bind(address)


def port_of(sock: socket.socket) -> int:
    """Return the port that a socket was given."""
    return int(sock.getsockname()[1])
