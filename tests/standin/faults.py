"""The ways in which a server can be wrong, each ordered by its name for one route or several."""

import gzip
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.standin.server import Exchange

ROUTES = ("config", "servers", "latency", "download", "upload")
STATUSES = ("204", "400", "401", "403", "404", "429", "500", "501", "503")


def drip(exchange: "Exchange") -> None:
    """Send the answer one byte at a time, fast enough that no time-out ever comes, and never finish."""
    exchange.head(200)
    while exchange.open():
        exchange.write(b" ")
        time.sleep(0.1)


def endless(exchange: "Exchange") -> None:
    """Send a body without end."""
    exchange.head(200)
    while exchange.open():
        exchange.write(b" " * 65_536)


def gzip_bomb(exchange: "Exchange") -> None:
    """Send 1 MB that unpacks to 1 GB."""
    member = gzip.compress(bytes(10 * 2**20))
    body = member * 100
    exchange.head(200, length=len(body), headers={"Content-Encoding": "gzip"})
    exchange.write(body)


def slow(exchange: "Exchange") -> None:
    """Say nothing until the client has given up (or for a minute)."""
    exchange.wait(60)


def redirect(exchange: "Exchange") -> None:
    """Send the client to a portal's page."""
    exchange.drain()
    exchange.head(302, length=0, headers={"Location": f"http://{exchange.host}/portal"})


def busy(exchange: "Exchange") -> None:
    """Say that all servers are taken, and when to come back."""
    exchange.drain()
    exchange.head(503, length=0, headers={"Retry-After": "1"})


def html200(exchange: "Exchange") -> None:
    """Answer with a portal's page, as if all were well."""
    exchange.drain()
    exchange.portal()


def truncate(exchange: "Exchange") -> None:
    """Close in the middle of the body."""
    exchange.cut = 0.5
    exchange.serve()


def hang(exchange: "Exchange") -> None:
    """Send a part of the body and keep still."""
    exchange.cut = 0.1
    exchange.serve()
    exchange.wait(60)


def never_read(exchange: "Exchange") -> None:
    """Take the connection and read nothing more."""
    exchange.wait(60)


def close(exchange: "Exchange") -> None:
    """Close without an answer."""


def garbage(exchange: "Exchange") -> None:
    """Answer with what is not HTTP."""
    exchange.write(b"\x00\xff\x17 220 mail.example ESMTP\r\n\r\n")


def unread_500(exchange: "Exchange") -> None:
    """Answer 500 at once, without reading what the client sends."""
    exchange.head(500, length=0)


def endless_head(exchange: "Exchange") -> None:
    """Send headers without end."""
    exchange.write(b"HTTP/1.1 200 OK\r\n")
    while exchange.open():
        exchange.write(b"X-More: " + b"x" * 1_000 + b"\r\n")


def early(exchange: "Exchange") -> None:
    """Answer that all is well at once, without reading what the client sends."""
    exchange.head(200, length=0)
    exchange.wait(60)


def too_long(exchange: "Exchange") -> None:
    """Send more than the length that was announced."""
    exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2**20) + bytes(2**20 + 65_536))
    exchange.wait(60)


def bad_chunks(exchange: "Exchange") -> None:
    """Send a body in chunks whose sizes are no numbers."""
    exchange.head(200, headers={"Transfer-Encoding": "chunked"})
    exchange.write(b"4\r\nfour\r\nmany\r\nmore\r\n")


_SIMPLE = (drip, endless, gzip_bomb, slow, redirect, busy, html200, truncate, hang, never_read, close, garbage, unread_500)
_OF_HTTP = (endless_head, early, too_long, bad_chunks)
FAULTS: dict[str, Callable[["Exchange"], None]] = {each.__name__.replace("_", "-"): each for each in (*_SIMPLE, *_OF_HTTP)}
