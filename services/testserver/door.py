"""Where connections come in: never more than can be dealt with, those in their TLS handshake included.

asyncio's own server accepts whatever comes until there are no files left, and then logs an error for each try.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

AT_ONCE = 64
"""So many are accepted before what is open has its turn."""
AGAIN_AFTER_S = 0.1


class Door:
    """Accepts the connections of one listening socket for as long as `crowded` is false; the others wait in the kernel's queue."""

    def __init__(
        self,
        listener: socket.socket,
        connection: Callable[[], asyncio.BaseProtocol],
        crowded: Callable[[int], bool],
        *,
        context: ssl.SSLContext | None,
        handshake_s: float,
    ) -> None:
        """`crowded` is asked with the number of connections that are on their way in."""
        self._listener = listener
        self._connection = connection
        self._crowded = crowded
        self._context = context
        self._handshake_s = handshake_s if context else None
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._open()

    def close(self) -> None:
        """Take no more, and turn away who is still on the way in."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._entering:
            task.cancel()

    def _open(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                if self._crowded(len(self._entering)):
                    break
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no files left
                break
            accepted.setblocking(False)
            task = self._loop.create_task(self._enter(accepted))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)
        else:
            return
        self._loop.remove_reader(self._listener)
        self._loop.call_later(AGAIN_AFTER_S, self._open)

    async def _enter(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone, or its handshake failed: its own affair
            await self._loop.connect_accepted_socket(self._connection, accepted, ssl=self._context, ssl_handshake_timeout=self._handshake_s)
