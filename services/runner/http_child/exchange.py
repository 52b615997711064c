"""A request and its answer over a connection: heads by h11, bodies counted and thrown away."""

import socket
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

import h11

from services.runner.confined import STATUS_KINDS, Failed
from services.runner.http_child.connection import PIECE, Connection
from services.runner.http_child.framing import Chunks, Keep, Plain
from services.runner.http_child.tasks import READ, Steps

AGENT = "refresher/0.1.0"
LONGEST_HEAD_BYTES = 16 * 1024
MOST_INTERIM = 8
"""Heads before the one that counts: 100 Continue, 103 Early Hints (RFC 9110, 15.2)."""
BUFFER = bytearray(PIECE)
"""Of all connections: nothing stays in it while one of them waits."""
WAKE_BYTES = 128 * 1024
LOOK_EVERY_S = 0.1
"""The end of a body may be less than what wakes its reader."""
_VIEW = memoryview(BUFFER)
_DISCARD = socket.MSG_TRUNC if sys.platform == "linux" else 0
"""Linux throws bytes of TCP away without copying them."""


@dataclass(frozen=True)
class Request:
    """What to ask for; the length of a body that is sent by others."""

    method: str
    target: str
    host: str
    headers: tuple[tuple[str, str], ...] = ()
    body_bytes: int | None = None

    def __str__(self) -> str:
        """Return what is asked, for people."""
        return f"{self.method} {self.host}{self.target.partition('?')[0]}"[:300]

    def head(self) -> bytes:
        """Return the request's head as it goes over the wire."""
        return _head(self)


@lru_cache(256)
def _head(request: Request) -> bytes:
    size = request.body_bytes
    length = () if size is None else (("Content-Length", str(size)), ("Content-Type", "application/octet-stream"))
    headers = [("Host", request.host), ("User-Agent", AGENT), ("Accept-Encoding", "identity"), *request.headers, *length]
    try:
        told: bytes = h11.Connection(h11.CLIENT).send(h11.Request(method=request.method, target=request.target, headers=headers))
    except (h11.LocalProtocolError, UnicodeError) as error:  # of an address that a list of servers gives
        raise Failed("bad_answer", f"{str(request)!r} cannot be asked for: {error}") from None
    return told


@dataclass
class Answer:
    """The head of an answer, and what of its body came along."""

    status: int
    headers: dict[str, str]
    rest: bytes
    at: float
    """When its last byte was here, on the monotonic clock."""
    keeps_open: bool

    @property
    def length(self) -> int | None:
        """How many bytes the body has, None when it is chunked or lasts until the end."""
        if self.status in {204, 304}:
            return 0
        return None if self.chunked or "content-length" not in self.headers else int(self.headers["content-length"])

    @property
    def chunked(self) -> bool:
        """Tell whether the body comes in chunks."""
        return "transfer-encoding" in self.headers


@dataclass
class Exchange:
    """Requests one after another over a connection."""

    connection: Connection

    def ask(self, request: Request) -> Steps[Answer]:
        """Send a request without a body, and return the head of its answer.

        Raises: Failed.
        """
        yield from self.connection.send(request.head())
        return (yield from self.answer(request))

    def answer(self, request: Request, begun: bytes = b"", patience_s: float | None = None) -> Steps[Answer]:
        """Read the head of an answer that says 200; `begun` is what was already read of it.

        Raises: Failed: `rate_limited`, `blocked`, `redirected`, `bad_answer`, `timeout`, `truncated`.
        """
        answer = yield from self.head(request, begun, patience_s)
        check(answer, request)
        return answer

    def head(self, request: Request, begun: bytes = b"", patience_s: float | None = None) -> Steps[Answer]:
        """Read the head of an answer, whatever it says.

        Raises: Failed.
        """
        patience_s = patience_s or self.connection.endpoint.timeout_s
        end = time.monotonic() + patience_s
        for _ in range(MOST_INTERIM):
            text, begun = yield from self._text(request, begun, end, patience_s)
            answer = _parsed(text, begun, request, time.monotonic())
            if answer.status >= 200:
                return answer
        raise Failed("bad_answer", f"{request} was answered with nothing but interim answers (HTTP {answer.status})")

    def _text(self, request: Request, begun: bytes, end: float, patience_s: float) -> Steps[tuple[bytes, bytes]]:
        """Read one head whole, and what came behind it."""
        head = bytearray(begun)
        view = _VIEW[:LONGEST_HEAD_BYTES]
        while b"\r\n\r\n" not in head:
            if len(head) >= LONGEST_HEAD_BYTES:
                raise Failed("bad_answer", f"{request} answered with a head of more than {LONGEST_HEAD_BYTES >> 10} kB")
            received = self.connection.receive_into(view)
            if received > 0:
                head += view[:received]
            elif received == 0:
                raise Failed("bad_answer", f"{request} closed without an answer{' that is HTTP' if head else ''}")
            elif not (yield from self.connection.wait(READ, end)):
                raise Failed("timeout", f"{request} did not answer within {patience_s:g} s")
        text, _, rest = bytes(head).partition(b"\r\n\r\n")
        return text, rest

    def body(self, answer: Answer, request: Request, limit: int = 65_536) -> Steps[bytes]:
        """Read a body whole that is meant to be short.

        Raises: Failed when it is longer than the limit, cut short, or slower than a connection may be silent.
        """
        whole = bytearray()

        def keep(piece: memoryview) -> None:
            whole.extend(piece)
            if len(whole) > limit:
                raise Failed("bad_answer", f"{request} answered with a body of more than {limit >> 10} kB")

        yield from self.drain(answer, request, keep, time.monotonic() + self.connection.endpoint.timeout_s)
        return bytes(whole)

    def drain(self, answer: Answer, request: Request, keep: Keep | None = None, end: float | None = None) -> Steps[None]:
        """Read a body to its end; one that nobody looks at without copying it, in large pieces.

        Raises: Failed: `truncated` when it ends early, `bad_answer` when it breaks its own framing, `timeout`.
        """
        connection, patience_s = self.connection, self.connection.endpoint.timeout_s
        framing = Chunks(BUFFER, keep) if answer.chunked else Plain(BUFFER, answer.length, keep)
        BUFFER[: len(answer.rest)] = answer.rest
        # what is not looked at need not be copied; TLS has to be decrypted
        flags = 0 if keep or answer.chunked or connection.endpoint.tls else _DISCARD
        done, moved_at = framing.take(len(answer.rest)), time.monotonic()
        while not done:
            # before the read: what came while this process had no processor is not late
            late = time.monotonic() > (end or moved_at + patience_s)
            received = connection.receive_into(_VIEW[: framing.most()], flags)
            if received > 0:
                done, moved_at = framing.take(received), time.monotonic()
            elif received == 0:
                if not framing.ends():
                    raise Failed("truncated", f"{request}: the connection was closed before the whole body had come")
                done = True
            elif not late:
                connection.wake_at(1 if keep else min(WAKE_BYTES, framing.most()))  # the end of a body may be shorter
                yield from connection.wait(READ, min(moved_at + patience_s, time.monotonic() + LOOK_EVERY_S))
            if late and not done and (end or received < 0):
                raise Failed("timeout", f"{request}: the body was not complete after {patience_s:g} s")
        connection.wake_at(1)


def _parsed(text: bytes, rest: bytes, request: Request, at: float) -> Answer:
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=request.method, target=request.target, headers=[("Host", request.host)]))
    try:
        reader.receive_data(text + b"\r\n\r\n")
        event = reader.next_event()
    except h11.RemoteProtocolError as error:
        raise Failed("bad_answer", f"{request} answered with what is not HTTP: {error}") from None
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise Failed("bad_answer", f"{request} sent no answer but {type(event).__name__}")
    headers: dict[str, str] = {}
    for name, value in event.headers:  # one that comes twice is a list (RFC 9110, 5.3): of close and keep-alive, close counts
        key, said = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {said}" if key in headers else said
    keeps_open = event.http_version == b"1.1" and "close" not in headers.get("connection", "").lower()
    return Answer(event.status_code, headers, rest, at, keeps_open)


def check(answer: Answer, request: Request) -> None:
    """Refuse every answer but a plain 200.

    Raises: Failed.
    """
    status = answer.status
    if status == 200:
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            packed = answer.headers["content-encoding"][:60]
            raise Failed("bad_answer", f"{request} answered with a body packed by {packed}, which was not asked for")
        return
    name = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "a status of its own"
    if 300 <= status < 400:
        where = answer.headers.get("location", "nowhere")[:200]
        raise Failed("redirected", f"{request} redirects to {where}: give that address, if it is the right one")
    # without a word on when to come back, 503 is as well what a proxy says of a server that is down
    is_busy = status == 503 and "retry-after" in answer.headers
    kind = "rate_limited" if is_busy else STATUS_KINDS.get(status, "bad_answer")
    advice = ": too many tests; test less often, or against another server" if kind == "rate_limited" else ""
    raise Failed(kind, f"{request} answered HTTP {status} ({name}){advice}")
