"""One HTTP/1.1 connection.

A body of known length is only counted: it is received into one buffer that all connections share, and nothing looks at it. So
a connection costs a few kB, whatever its client does; the most that waits for a client that does not read is one piece of
garbage. On Linux, without TLS, garbage and long bodies pass by asyncio and are not copied (`direct`).
"""

import asyncio
import contextlib
import enum
import time
from dataclasses import replace

import h11

from services.testserver.addresses import plain
from services.testserver.answers import Answer, refusal
from services.testserver.direct import LEAST_BYTES, Direct
from services.testserver.exchange import Exchange
from services.testserver.garbage import PIECE_BYTES, Garbage
from services.testserver.judge import judge
from services.testserver.request import Asked
from services.testserver.site import Site
from services.testserver.transfers import Transfer

LINGER_S = 1.0
"""So long a client that was refused may go on sending: closed at once, it would get a reset in place of the reason."""
PIECES_AT_ONCE = 4
EVENTS_AT_ONCE = 16
"""Then other connections have their turn."""
CUT = {
    "idle": (408, "it stood still for too long"),
    "seconds": (408, "it took too long"),
    "bytes": (413, "it was too long"),
    "stopping": (503, "the server is being stopped"),
}

_shared_buffer = memoryview(bytearray(262_144))


class Phase(enum.Enum):
    """What the connection is about."""

    HEAD = enum.auto()
    UPLOAD = enum.auto()
    CHUNKS = enum.auto()
    DOWNLOAD = enum.auto()
    ENDING = enum.auto()


class Connection(asyncio.BufferedProtocol):
    """From accept to close; the site calls `check` a few times a second."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._settings = site.settings
        self._transport: asyncio.Transport
        self._client = ""
        self._phase = Phase.HEAD
        self._exchange = Exchange(self._settings.testserver_head_bytes)
        self._answer = Answer(200)
        self._transfer: Transfer | None = None
        self._garbage = Garbage()
        self._direct: Direct | None = None
        self._left = 0
        """How much of a body of known length is still to come, or to be sent."""
        self._behind = b""
        """What came behind that body together with its beginning."""
        self._full = False
        """Whether the client must read before more is written."""
        self._since = self._moved_at = time.monotonic()
        self._moved = (0, 0)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse at once when there are too many."""
        self._transport = transport
        transport.set_write_buffer_limits(high=PIECE_BYTES // 4)
        peer = transport.get_extra_info("peername")
        if not peer:  # it has gone already
            transport.abort()
            return
        self._client = plain(peer[0])
        if not self._site.admit(self):
            self._refuse(refusal(503, "connections", "Too many connections are open here; try again in a while."))

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the end."""
        self._phase = Phase.ENDING
        self._end_transfer("left")
        self._site.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give room for what comes next, and for no more than belongs to it."""
        if self._phase is Phase.UPLOAD:
            return _shared_buffer[: self._left]
        return _shared_buffer[: self._settings.testserver_head_bytes] if self._phase is Phase.HEAD else _shared_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Count a body, parse a head and chunks, and drop what a client sends that has been refused."""
        if self._phase is Phase.UPLOAD and self._transfer:
            self._transfer.bytes += nbytes
            self._left -= nbytes
            if not self._left:
                self._uploaded(self._behind)
                self._advance()
        elif self._phase in (Phase.HEAD, Phase.CHUNKS):
            if not self._exchange.begun:
                self._since = time.monotonic()
            self._exchange.receive(bytes(_shared_buffer[:nbytes]))
            self._advance()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on, in a moment: a transport that is closed, or fails, within this call loses its connection twice (CPython 3.11)."""
        self._full = False
        asyncio.get_running_loop().call_soon(self._pump if self._phase is Phase.DOWNLOAD else self._advance)

    def check(self, now: float) -> None:
        """End what takes too long."""
        moved = (self._transfer.bytes if self._transfer else 0, self._transport.get_write_buffer_size())
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        idle = now - self._moved_at > self._settings.testserver_idle_s
        if self._transfer:
            if idle:
                self._cut("idle")
            elif now - self._transfer.started_at > self._settings.testserver_seconds:
                self._cut("seconds")
        elif self._phase is Phase.HEAD and not self._full:
            if now - self._since > self._settings.testserver_idle_s:
                self._give_up()
        elif idle or (self._phase is Phase.ENDING and not moved[1] and now - self._since > LINGER_S):
            self._transport.abort()

    def stop(self, *, now: bool) -> None:
        """End where nothing is under way; with `now`, everywhere."""
        if self._phase is Phase.HEAD and not self._exchange.begun:
            self._close()
        elif now and self._transfer:
            self._cut("stopping")
        elif now:
            self._transport.abort()

    def _advance(self) -> None:
        """Work through what has been received, as far as it goes and as the client reads the answers."""
        for _ in range(EVENTS_AT_ONCE):
            if self._phase not in (Phase.HEAD, Phase.CHUNKS) or self._full:
                break
            try:
                event = self._exchange.event()
            except (h11.RemoteProtocolError, ValueError) as error:
                self._end_transfer("malformed")
                status = getattr(error, "error_status_hint", 400)
                self._refuse(refusal(status, "malformed", f"This is no HTTP/1.1 that can be read: {error}."))
                break
            if isinstance(event, Asked):
                self._handle(event)
            elif isinstance(event, int):
                self._chunk(event)
            elif event == "end":
                self._uploaded(self._exchange.beyond)
            else:
                break
        else:
            asyncio.get_running_loop().call_soon(self._advance)
            self._transport.pause_reading()
            return
        if self._phase is Phase.DOWNLOAD or self._direct or self._full:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _handle(self, asked: Asked) -> None:
        self._answer, self._transfer = judge(self._site, asked, self._client)
        if self._answer.refused:
            self._refuse(self._answer)
        elif self._transfer and self._answer.transfer == "upload":
            self._upload(asked)
        elif self._transfer:
            self._download(self._transfer)
        else:
            self._write_answer(close=False)
            self._next(self._exchange.beyond)

    def _upload(self, asked: Asked) -> None:
        self._transport.write(self._exchange.go_on())
        if asked.body is None:
            self._phase = Phase.CHUNKS
            return
        here = self._exchange.beyond
        self._phase, self._left, self._behind = Phase.UPLOAD, asked.body - len(here[: asked.body]), here[asked.body :]
        if self._transfer:
            self._transfer.bytes = asked.body - self._left
        if not self._left:
            self._uploaded(self._behind)
        elif self._left >= LEAST_BYTES and (direct := Direct.beside(self._transport)):
            self._direct = direct
            self._transport.pause_reading()
            direct.when_readable(self._drain)

    def _drain(self) -> None:
        """Count and throw away what has come of an upload."""
        if not self._transfer or not self._direct:
            return
        try:
            received = self._direct.discard(self._left)
        except OSError:
            self._vanished()
            return
        self._transfer.bytes += received
        self._left -= received
        if not self._left:
            self._uploaded(self._behind)
            self._advance()

    def _vanished(self) -> None:
        self._end_transfer("left")
        self._transport.abort()

    def _chunk(self, length: int) -> None:
        if self._transfer:
            self._transfer.bytes += length
            if self._transfer.bytes > self._settings.testserver_bytes:
                self._cut("bytes")

    def _uploaded(self, beyond: bytes) -> None:
        self._end_transfer("complete")
        self._write_answer(close=False)
        self._next(beyond)

    def _download(self, transfer: Transfer) -> None:
        """Begin to send; what would be too long says so by its length, and is the last answer of its connection."""
        self._phase, self._left = Phase.DOWNLOAD, min(self._answer.length, self._settings.testserver_bytes)
        transfer.outcome = "complete" if self._left == self._answer.length else "bytes"
        self._answer = replace(self._answer, length=self._left)
        self._write_answer(close=transfer.outcome == "bytes")
        if direct := Direct.beside(self._transport):
            self._direct = direct
            direct.when_writable(self._pour)
        else:
            self._pump()

    def _pour(self) -> None:
        """Send from the file what the socket takes; what was written before it goes first."""
        if not self._transfer or not self._direct or self._transport.get_write_buffer_size():
            return
        try:
            sent = self._direct.send(self._garbage, self._left)
        except OSError:
            self._vanished()
            return
        self._left -= sent
        self._transfer.bytes += sent
        if not self._left:
            self._downloaded(self._transfer)

    def _pump(self) -> None:
        """Send as much as the client takes, a few pieces a turn."""
        for _ in range(PIECES_AT_ONCE):
            if self._phase is not Phase.DOWNLOAD or self._full or self._direct or not self._transfer:
                return
            piece = self._garbage.piece(self._left)
            self._transport.write(piece)
            self._left -= len(piece)
            sent = self._answer.length - self._left - self._transport.get_write_buffer_size()
            self._transfer.bytes = max(self._transfer.bytes, sent)
            if not self._left:
                self._downloaded(self._transfer)
                return
        if not self._full:
            asyncio.get_running_loop().call_soon(self._pump)

    def _downloaded(self, transfer: Transfer) -> None:
        transfer.bytes = self._answer.length
        self._end_transfer(transfer.outcome)
        self._next(self._exchange.beyond, close=transfer.outcome == "bytes")
        self._advance()

    def _end_transfer(self, outcome: str) -> None:
        if self._direct:
            self._direct.close()
            self._direct = None
            self._transport.resume_reading()
        if self._transfer:
            self._site.transfers.end(self._transfer, outcome)
            self._transfer = None

    def _cut(self, outcome: str) -> None:
        """End a transfer: an upload with a status, a download by closing short of its length."""
        self._end_transfer(outcome)
        if self._phase is not Phase.DOWNLOAD:
            status, why = CUT[outcome]
            self._refuse(refusal(status, outcome, f"This upload was cut short: {why}."))
        elif outcome in ("idle", "stopping"):  # what waits to be sent would not be read either, or not soon enough
            self._transport.abort()
        else:
            self._close()

    def _give_up(self) -> None:
        if self._exchange.begun:
            self._refuse(refusal(408, "idle", "The head of this request took too long."))
        else:
            self._close()

    def _write_answer(self, *, close: bool) -> None:
        asked = self._exchange.asked
        close = close or asked is None or not asked.keep_alive or self._site.stopping
        body = b"" if asked and asked.method == "HEAD" else self._answer.body
        self._transport.write(self._exchange.head(self._answer, close=close) + body)

    def _next(self, beyond: bytes, *, close: bool = False) -> None:
        asked = self._exchange.asked
        if close or asked is None or not asked.keep_alive or self._site.stopping:
            self._close()
            return
        self._phase, self._since = Phase.HEAD, time.monotonic()
        self._exchange = Exchange(self._settings.testserver_head_bytes, beyond)

    def _refuse(self, answer: Answer) -> None:
        """Say why, and close; what the client still sends is dropped meanwhile."""
        self._site.metrics.refused.labels(answer.refused).inc()
        self._answer = answer
        self._write_answer(close=True)
        self._phase, self._since = Phase.ENDING, time.monotonic()
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # the client has gone, which asyncio is about to tell
                self._transport.write_eof()
        else:
            self._transport.close()

    def _close(self) -> None:
        self._phase, self._since = Phase.ENDING, time.monotonic()
        self._transport.close()
