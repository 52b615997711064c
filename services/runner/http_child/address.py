"""From a URL to where its server is: resolved once, and the same address for every connection of a run."""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

from services.runner.confined import Failed, is_no_way
from services.runner.http_child.connection import Connection, Endpoint
from services.runner.http_child.order import Way
from services.runner.http_child.tasks import Loop, Steps

SAFE = "/%:@!$&'()*+,;=~"
"""What may stand in a path as it is (RFC 3986, 3.3), and what is written in that way already."""
_FAMILIES = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True)
class Place:
    """A server's address for people and for requests."""

    url: str
    host: str
    """With the port where it is not the scheme's own: the header Host."""
    path: str
    """Without a slash at its end."""
    endpoint: Endpoint

    def at(self, target: str) -> str:
        """Return the target of a request for what lies under the path."""
        return f"{self.path}/{target}"


def find(loop: Loop, url: str, way: Way) -> Place:
    """Resolve a URL's host, and take the first of its addresses that can be connected to.

    Raises: Failed: `misconfigured`, `unreachable`, `line_down`.
    """
    problem = None
    for place in _places(url, way):
        try:
            loop.finish(_try(place.endpoint))
        except Failed as failed:
            if failed.kind not in {"unreachable", "line_down"}:
                raise
            if not problem or failed.kind == "unreachable":  # no way for one of IPv4 and IPv6 is not a line that is down
                problem = failed
        else:
            return place
    raise problem or Failed("unreachable", f"{url[:200]} has no address")


def look_up(url: str, way: Way) -> Place:
    """Resolve a URL's host, and take the first of its addresses untried.

    Raises: Failed: `misconfigured`, `unreachable`, `line_down`.
    """
    return next(iter(_places(url, way)))


def _places(url: str, way: Way) -> list[Place]:
    try:
        parts = urlsplit(url)
        named, port = parts.hostname, parts.port
        name = named.encode("idna").decode() if named and ":" not in named else named
    except ValueError as error:
        raise Failed("misconfigured", f"{url[:200]} is no address of a server: {error}") from None
    if parts.scheme not in {"http", "https"} or not name:
        raise Failed("misconfigured", f"{url[:200]} is no address of a server: it begins with http:// or https:// and has a host")
    tls = _trust(way.ca_file) if parts.scheme == "https" else None
    base = Endpoint(name, socket.AF_UNSPEC, (), way.timeout_s, tls, way.source_address, way.interface)
    path, host = quote(parts.path.rstrip("/"), SAFE), f"[{name}]" if ":" in name else name
    host, port = (f"{host}:{port}" if port else host), port or (443 if tls else 80)
    return [
        Place(f"{parts.scheme}://{host}{path}", host, path, replace(base, family=family, address=address))
        for family, address in _resolved(base.host, port, way)
    ]


def _resolved(host: str, port: int, way: Way) -> Sequence[tuple[int, tuple[Any, ...]]]:
    family = _FAMILIES[way.ip_version]
    if way.source_address:
        family = socket.AF_INET6 if ":" in way.source_address else socket.AF_INET
    try:
        return [(each[0], each[4]) for each in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)][:6]
    except (OSError, UnicodeError) as error:
        kind = "line_down" if isinstance(error, OSError) and is_no_way(error) else "unreachable"
        raise Failed(kind, f"{host} cannot be resolved: {error}") from None


def _try(endpoint: Endpoint) -> Steps[None]:
    connection = Connection(endpoint)
    try:
        yield from connection.open()
    finally:
        connection.close()


@lru_cache(1)
def _trust(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Failed("misconfigured", f"ca_file {ca_file} cannot be used: {error}") from None
