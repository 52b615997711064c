"""Whether one target answers, and how fast: its name, its TCP connection, and its HTTP status.

Names are asked for over the network by dnspython, never by getaddrinfo: that runs in a thread which nothing can cancel, and
which would be left behind, one a run, for as long as no resolver answers. Nothing is cached, so each check is a real query.
"""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver
from pydantic import AfterValidator, StringConstraints

Address = IPv4Address | IPv6Address
PORTS = {"http": 80, "https": 443}
LINE_BYTES = 8_192
"""The first line of an answer is all that is read; one longer than this is none."""

Problem = Literal["dns", "unreachable", "timeout", "redirected", "bad_answer"]


def _target(text: str) -> str:
    """Refuse what is no target: the port of `tcp` cannot be guessed, and a name must be one that can be asked for."""
    url = urlsplit(text)
    if url.scheme not in {"tcp", *PORTS} or not url.hostname or url.username is not None:
        raise ValueError("write tcp://host:port, http://host/path or https://host/path")
    if url.scheme == "tcp" and (url.port is None or url.path or url.query):  # urlsplit refuses a port that is none
        raise ValueError("write tcp://host:port")
    if not text.isascii() or not text.isprintable() or " " in text or any(not 1 <= len(part) <= 63 for part in url.hostname.split(".")):
        raise ValueError("the host is no address and no name that can be asked for")
    return text


TargetText = Annotated[str, StringConstraints(max_length=500), AfterValidator(_target)]
"""`tcp://host:port`, `http://host/path` or `https://host/path`."""


def address_of(host: str) -> Address | None:
    """Return the address that a host is written as, None when it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_named(target: str) -> bool:
    """Return whether a name must be resolved to reach a target."""
    return address_of(urlsplit(target).hostname or "") is None


@dataclass
class Check:
    """What came of one target; a time is there when that step was done."""

    target: str
    address: str | None = None
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    http_s: float | None = None
    """From the request to the first line of the answer."""
    status: int | None = None
    problem: Problem | None = None
    reason: str | None = None

    def details(self) -> dict[str, Any]:
        """Return what is known, for the details of a measurement."""
        return {"target": self.target, "reachable": self.problem is None} | {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in vars(self).items()
            if name != "target" and value is not None
        }


def resolver_at(server: str | None, timeout_s: float) -> dns.asyncresolver.Resolver:
    """Return a resolver that asks one server, given as `address` or `address:port`, or those of the system.

    Raises: dns.resolver.NoResolverConfiguration when the system names none.
    """
    resolver = dns.asyncresolver.Resolver(configure=server is None)
    if server is not None:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(*_host_and_port(server))]
    resolver.lifetime, resolver.timeout = timeout_s, timeout_s / 2  # a datagram that was lost is sent once more
    resolver.cache = None
    return resolver


def _host_and_port(server: str) -> tuple[str, int]:
    if address_of(server):
        return server, 53
    url = urlsplit(f"//{server}")
    if not url.hostname or not address_of(url.hostname) or url.port is None:
        raise ValueError("write the resolver as an address or as address:port, such as 192.0.2.1 or [2001:db8::1]:53")
    return url.hostname, url.port


def _resolver(text: str) -> str:
    _host_and_port(text)
    return text


ResolverText = Annotated[str, StringConstraints(max_length=100), AfterValidator(_resolver)]
"""An address, or address:port."""


async def check(target: str, resolver: dns.asyncresolver.Resolver, timeout_s: float, source: Address | None = None) -> Check:
    """Look whether a target answers within so many seconds, all steps together.

    Cancelling it leaves no socket, thread or task behind.
    """
    url, found = urlsplit(target), Check(target)
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await _addresses(found, url.hostname or "", resolver, source)
            if addresses:
                await _talk(found, addresses, source)
    except TimeoutError:
        step = "the name did not resolve" if found.address is None else f"{found.address} did not {_waited_for(found)}"
        found.problem, found.reason = "dns" if found.address is None else "timeout", f"{step} within {timeout_s:g} s"
    except ssl.SSLError as error:
        found.problem, found.reason = "bad_answer", f"TLS failed: {error.reason or error}"
    except OSError as error:
        found.problem, found.reason = "unreachable", f"{found.address}: {os.strerror(error.errno) if error.errno else error}"
    return found


def _waited_for(found: Check) -> str:
    return "accept a connection" if found.connect_s is None else "answer"


async def _addresses(found: Check, host: str, resolver: dns.asyncresolver.Resolver, source: Address | None) -> Sequence[str]:
    """Return one address of each version, or none with the problem noted."""
    if literal := address_of(host):
        found.address = str(literal)
        return [found.address]
    started = time.perf_counter()
    kinds = [kind for kind, version in (("A", 4), ("AAAA", 6)) if source is None or source.version == version]
    asked = (resolver.resolve(f"{host.rstrip('.')}.", kind, source=str(source) if source else None) for kind in kinds)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    addresses = [answer[0].to_text() for answer in answers if isinstance(answer, dns.resolver.Answer)]
    if addresses:
        found.dns_s, found.address = time.perf_counter() - started, addresses[0]
        return addresses
    errors = [error for error in answers if isinstance(error, BaseException)]
    for error in errors:
        if not isinstance(error, dns.exception.DNSException | OSError):
            raise error  # no answer, and no trouble of the network either: a bug
    found.problem, found.reason = "dns", _told(host, errors)
    return []


def _told(host: str, errors: Sequence[BaseException]) -> str:
    if any(isinstance(error, dns.resolver.NXDOMAIN) for error in errors):
        return f"there is no name {host} (NXDOMAIN)"
    if all(isinstance(error, dns.resolver.NoAnswer) for error in errors):
        return f"{host} has no address"
    return f"{host} did not resolve: {errors[0]}"


async def _talk(found: Check, addresses: Sequence[str], source: Address | None) -> None:
    url = urlsplit(found.target)
    port = url.port or PORTS[url.scheme]
    connection = await _connected(found, addresses, port, source)
    if url.scheme == "tcp":
        connection.close()
        return
    started = time.perf_counter()
    secure: dict[str, Any] = {"ssl": ssl.create_default_context(), "server_hostname": url.hostname} if url.scheme == "https" else {}
    try:
        reader, writer = await asyncio.open_connection(sock=connection, limit=LINE_BYTES, **secure)
    except BaseException:
        connection.close()
        raise
    try:
        found.tls_s = time.perf_counter() - started if secure else None
        await _ask(found, reader, writer)
    finally:
        writer.transport.abort()


async def _connected(found: Check, addresses: Sequence[str], port: int, source: Address | None) -> socket.socket:
    """Return a connection to the first address that accepts one, raising what the last one answered."""
    for number, address in enumerate(addresses, start=1):
        found.address = address
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            connection.setblocking(False)
            if source:
                connection.bind((str(source), 0))
            started = time.perf_counter()
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except OSError:
            connection.close()
            if number == len(addresses):
                raise
        except BaseException:
            connection.close()
            raise
        else:
            found.connect_s = time.perf_counter() - started
            return connection
    raise AssertionError("there is at least one address")


async def _ask(found: Check, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    url, started = urlsplit(found.target), time.perf_counter()
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nUser-Agent: refresher\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode())
    try:
        line = await reader.readuntil(b"\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        line = b""
    version, _, rest = line.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit() or rest[3:4] not in {b" ", b"\r", b"\n"}:
        found.problem, found.reason = "bad_answer", "what answers does not speak HTTP"
        return
    found.http_s, found.status = time.perf_counter() - started, int(rest[:3])
    if 300 <= found.status < 400:
        found.problem, found.reason = "redirected", f"HTTP {found.status}: sent elsewhere, as the login page of a hot spot does"
    elif found.status == 200 and url.path.endswith("/generate_204"):
        found.problem, found.reason = "redirected", "HTTP 200 in place of 204: another page, as the login page of a hot spot is"
    elif not 200 <= found.status < 300:
        found.problem, found.reason = "bad_answer", f"HTTP {found.status}"
