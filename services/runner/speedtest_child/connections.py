"""The library's connections, with what it leaves out: what became of a latency request, and what was really sent."""

import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException
from typing import Any

from services.runner.confined import is_no_way
from services.runner.speedtest_child.audit import Audit, Problem, Transfer, answered, unanswered

MOST_LATENCY_S = 3.0
"""Instead of 10 s: three requests to each of five dead servers must leave time for a better answer than `timeout`."""
_create_connection = socket.create_connection
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def watched(connection: Any, audit: Audit, timeout_s: float) -> Callable[..., Any]:
    """Return what the library is to call instead of one of its two classes of connections.

    Only the connections of its latency requests, which do not go through its opener, are made without a timeout.
    """
    latency_s = min(MOST_LATENCY_S, timeout_s)
    transferring, latency = _transferring(connection, audit), _latency(connection, audit, latency_s)

    def connect(host: str, **options: Any) -> Any:
        if "timeout" in options:
            return transferring(host, **options)
        return latency(host, timeout=latency_s, **options)

    return connect


def connected(address: tuple[str, int], timeout: float | None, source_address: tuple[str, int] | None = None) -> socket.socket:
    """Connect as `socket.create_connection` does, which tries all of a host's addresses and tells only of the last.

    Raises: OSError, of several one that another machine is the reason for: no way for one of IPv4 and IPv6 is not a line
    that is down.
    """
    try:
        return _create_connection(address, timeout, source_address, all_errors=True)
    except ExceptionGroup as group:
        errors = [error for error in group.exceptions if isinstance(error, OSError)]
        raise next((error for error in errors if not is_no_way(error)), errors[-1]) from None


def _latency(connection: Any, audit: Audit, timeout_s: float) -> Any:
    class Latency(connection):  # type: ignore[misc]
        """A connection for one latency request."""

        def request(self, method: str, url: str, **options: Any) -> None:
            self.transfer = audit.added(f"{self.host}:{self.port}{url}")
            with self._noted():
                super().request(method, url, **options)

        def getresponse(self) -> "Echo":
            with self._noted():
                response = super().getresponse()
            if response.status != 200:
                self.transfer.problem = answered(response.status, response.headers.get("Location"))
            return Echo(response, self._noted, self.transfer)

        @contextmanager
        def _noted(self) -> Iterator[None]:
            try:
                yield
            except (OSError, HTTPException, ValueError) as error:
                self.transfer.problem = unanswered(error, timeout_s)
                raise OSError(self.transfer.problem.text) from error

    return Latency


def _transferring(connection: Any, audit: Audit) -> Any:
    class Transferring(connection):  # type: ignore[misc]
        """A connection for a transfer; given up, it is reset, or the kernel would go on sending into the next phase."""

        def request(self, *arguments: Any, **options: Any) -> None:
            with self._given_up():
                super().request(*arguments, **options)

        def getresponse(self) -> Any:
            with self._given_up():
                return super().getresponse()

        @contextmanager
        def _given_up(self) -> Iterator[None]:
            try:
                yield
            except BaseException:
                if self.sock is not None:
                    audit.unacknowledged_bytes += unacknowledged(self.sock)
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                raise

    return Transferring


class Echo:
    """The response to a latency request."""

    def __init__(self, response: Any, noted: Callable[[], AbstractContextManager[None]], transfer: Transfer) -> None:
        self.status = response.status
        self._response = response
        self._noted = noted
        self._transfer = transfer

    def read(self, size: int) -> bytes:
        """Return the beginning of the body; nothing when the connection breaks, where the library expects no exception."""
        try:
            with self._noted():
                text: bytes = self._response.read(size)
        except OSError:
            return b""
        if text != b"test=test" and self._transfer.problem is None:
            self._transfer.problem = Problem("bad_answer", f"latency.txt begins with {text!r} instead of test=test")
        return text


def unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the kernel still holds for the far end (0 where it does not tell)."""
    if sys.platform != "linux":
        return 0
    held: int = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
    return held
