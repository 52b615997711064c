"""The way past asyncio for long bodies: on Linux and without TLS, the kernel needs no copy of bytes that nobody looks at."""

import asyncio
import os
import socket
from collections.abc import Callable

from services.testserver.garbage import FILE, Garbage

LEAST_BYTES = 1_048_576
"""A shorter body is not worth the trouble."""
AT_ONCE_BYTES = 1_048_576
"""Then other connections have their turn."""
_ROOM = bytearray(AT_ONCE_BYTES)
"""Nothing is ever in it: Linux throws bytes of TCP away without copying them, but wants to see room for them."""


class Direct:
    """A second descriptor of a connection's socket, for asyncio keeps the first to itself."""

    def __init__(self, descriptor: int, file: int) -> None:
        self._file = file
        self._socket = socket.socket(fileno=descriptor)
        self._loop = asyncio.get_running_loop()

    @classmethod
    def beside(cls, transport: asyncio.Transport) -> "Direct | None":
        """Return one for the socket of a transport, None where the bytes must pass through asyncio."""
        if FILE is None or transport.get_extra_info("ssl_object") or transport.is_closing():
            return None
        try:
            return cls(os.dup(transport.get_extra_info("socket").fileno()), FILE)
        except OSError:  # no descriptor is left
            return None

    def when_writable(self, send: Callable[[], None]) -> None:
        """Call that whenever the socket takes more."""
        self._loop.add_writer(self._socket, send)

    def when_readable(self, receive: Callable[[], None]) -> None:
        """Call that whenever something has come."""
        self._loop.add_reader(self._socket, receive)

    def send(self, garbage: Garbage, most: int) -> int:
        """Send at most so many bytes of garbage, and return how many the socket took.

        Raises: OSError when it takes no more, ever.
        """
        try:
            return garbage.send(self._socket.fileno(), self._file, min(most, AT_ONCE_BYTES))
        except BlockingIOError:
            return 0

    def discard(self, most: int) -> int:
        """Throw away at most so many bytes that have come, and return how many they were.

        Raises: OSError when no more will come.
        """
        try:
            received = self._socket.recv_into(_ROOM, min(most, AT_ONCE_BYTES), socket.MSG_TRUNC)
        except BlockingIOError:
            return 0
        if not received:
            raise ConnectionAbortedError("the client closed")
        return received

    def close(self) -> None:
        """Leave the socket to asyncio."""
        self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._socket)
        self._socket.close()
