"""A websocket of NDT7 over a connection: the framing is that of the library websockets, the bytes are moved and counted here.

Source: the ndt7 specification v0.11, RFC 6455.
"""

import os
import time
from collections import deque

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from services.runner.confined import Failed
from services.runner.http_child.connection import Connection
from services.runner.http_child.exchange import AGENT, LOOK_EVERY_S
from services.runner.http_child.tasks import READ, WRITE, Steps, Wait
from services.runner.ndt7_child.told import Told, failed_status

PROTOCOL = Subprotocol("net.measurementlab.ndt.v7")
SMALLEST_MESSAGE, LARGEST_MESSAGE = 2**13, 2**20
LONGEST_MESSAGE = 2**24
"""That a server may send, by the specification."""
LONGEST_TEXT = 2**16
MOST_WORDS = 1_000
"""Texts and control frames: a server speaks a few times a second."""
GOODBYE_S = 3.0
"""For a server to answer a goodbye, and to say its last word before."""
WAKE_BYTES = 32 * 1024
"""Less than a receive window is at first, so that a sender never waits for a reader that it does not wake."""
READS = 32
"""At once, before others have their turn."""
PIECE = memoryview(bytearray(128 * 1024))


class Websocket:
    """One direction of a test. What it was told and what came are its attributes."""

    def __init__(self, connection: Connection, url: str, phase: str) -> None:
        self.connection = connection
        self.told = Told()
        self.carried_bytes = 0
        """The payload of the binary messages that came."""
        self.opened_at = self.carried_at = 0.0
        self._phase = phase
        self._protocol = ClientProtocol(parse_uri(url), subprotocols=[PROTOCOL], max_size=LONGEST_MESSAGE)
        self._out: deque[memoryview] = deque()
        self._text: bytearray | None = None
        self._words = 0

    def open(self) -> Steps[None]:
        """Connect and shake hands.

        Raises: Failed: `rate_limited`, `blocked`, `redirected`, `bad_answer`, `timeout`, `unreachable`, `misconfigured`.
        """
        yield from self.connection.open()
        end = time.monotonic() + self.connection.endpoint.timeout_s
        request = self._protocol.connect()
        request.headers["User-Agent"] = AGENT
        self._protocol.send_request(request)
        while self._protocol.state is State.CONNECTING:
            self._take()
            self._send()
            if problem := self._protocol.handshake_exc:
                raise _refused(problem, str(self.connection.endpoint))
            if self._protocol.state is State.CONNECTING and not (yield from self.connection.wait(READ, end)):
                raise Failed("timeout", f"{self.connection.endpoint} did not answer within {self.connection.endpoint.timeout_s:g} s")
        self.opened_at = time.monotonic()
        self._hear()

    def download(self) -> Steps[None]:
        """Read until the server ends it.

        Raises: Failed: `truncated` when it breaks off, `bad_answer` when it is not as NDT7 has it.
        """
        self.connection.wake_at(WAKE_BYTES)
        while not self._ended:
            yield from self._listen()

    def upload(self) -> Steps[None]:
        """Send messages that double as long as they are at most a sixteenth of what was sent, until the server ends it.

        Raises: Failed, as for a download.
        """
        message, sent = os.urandom(SMALLEST_MESSAGE), 0
        while not self._ended:
            if not self._out:
                self._protocol.send_binary(message)
                sent += len(message)
                if len(message) < LARGEST_MESSAGE and len(message) * 2 <= sent / 16:
                    message += message
            if self._send():
                yield Wait(0.0)
            else:
                yield from self.connection.wait(READ | WRITE, time.monotonic() + LOOK_EVERY_S)
            self._take()
            self._hear()

    def end(self) -> Steps[None]:
        """Say goodbye, and listen for a little while to what the server still has to say."""
        end = time.monotonic() + GOODBYE_S
        self.connection.wake_at(1)
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
        while not self._ended and time.monotonic() < end:
            yield from self._listen()

    @property
    def _ended(self) -> bool:
        return self._protocol.close_rcvd is not None

    def _listen(self) -> Steps[None]:
        """Take what is there, else wait for more."""
        more = self._take()
        self._hear()
        self._send()
        if more:
            yield Wait(0.0)  # what TLS holds decrypted wakes nobody
        elif not self._ended:
            yield from self.connection.wait(READ | WRITE if self._out else READ, time.monotonic() + LOOK_EVERY_S)

    def _take(self) -> bool:
        """Take what has come; tell whether there may be more."""
        for _ in range(READS):
            received = self.connection.receive_into(PIECE)
            if received < 0:
                return False
            if received == 0:
                self._protocol.receive_eof()
                return False
            self._protocol.receive_data(bytes(PIECE[:received]))
            if self._protocol.state is not State.CONNECTING:
                self._hear()
        return True

    def _send(self) -> bool:
        """Send what waits to be sent; tell whether all of it went."""
        self._out.extend(memoryview(data) for data in self._protocol.data_to_send() if data)
        while self._out:
            sent = self.connection.send_some(self._out[0])
            if not sent:
                return False
            self._out[0] = self._out[0][sent:]
            if not self._out[0]:
                self._out.popleft()
        return True

    def _hear(self) -> None:
        frames = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
        if len(frames) > MOST_WORDS:  # the smallest message of the specification has 1,024 bytes
            raise self._wrong(f"sends {len(frames)} frames in {len(PIECE) >> 10} kB: that is no test")
        for frame in frames:
            self._frame(frame)
        problem = self._protocol.parser_exc
        if isinstance(problem, EOFError):
            if not self._ended:
                lasted_s = time.monotonic() - self.opened_at
                raise Failed("truncated", f"{self.connection.endpoint} broke the {self._phase} off after {lasted_s:.1f} s")
        elif problem:
            raise self._wrong(f"sends what is no websocket's frame: {problem}")

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.BINARY or (frame.opcode is Opcode.CONT and self._text is None):
            if self._phase == "upload":
                raise self._wrong("sends data during an upload")
            self.carried_bytes += len(frame.data)
            self.carried_at = time.monotonic()
            return
        self._words += 1
        if self._words > MOST_WORDS:
            raise self._wrong(f"sends more than {MOST_WORDS} texts and control frames: that is no test")
        if frame.opcode is Opcode.TEXT:
            self._text = bytearray()
        if frame.opcode in {Opcode.TEXT, Opcode.CONT} and self._text is not None:
            self._text += frame.data
            if len(self._text) > LONGEST_TEXT:
                raise self._wrong(f"sends a text of more than {LONGEST_TEXT >> 10} kB")
            if frame.fin:
                self.told = self.told.updated(bytes(self._text))
                self._text = None

    def _wrong(self, what: str) -> Failed:
        return Failed("bad_answer", f"{self.connection.endpoint} {what}")


def _refused(problem: Exception, who: str) -> Failed:
    if isinstance(problem, InvalidStatus):
        response = problem.response
        return failed_status(response.status_code, response.headers.get("Location"), who)
    if isinstance(problem, InvalidHandshake):
        cause = f" ({problem.__cause__})" if problem.__cause__ else ""
        return Failed("bad_answer", f"{who} does not speak NDT7: {problem}{cause}")
    return Failed("bad_answer", f"{who} does not speak NDT7: {problem}")
