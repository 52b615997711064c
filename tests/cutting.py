"""A line between a client and a server on this machine that a test may freeze and cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Line:
    """A TCP port that leads to another one."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._ends: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    def freeze(self) -> None:
        """Let nothing through from now on; what is sent is taken all the same, and neither end notices."""
        self._flows.clear()

    def cut(self) -> None:
        """Break every connection, and lose what was on its way; new ones are let through."""
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()
        self._flows.set()

    async def lead(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Lead a connection to the other port."""
        there, on = await asyncio.open_connection("127.0.0.1", self._to)
        self._ends |= {back, on}
        await asyncio.gather(self._copy(here, on), self._copy(there, back))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await self._flows.wait()
                target.write(data)
                await target.drain()
        target.close()


@contextlib.asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    """Give a line to a port of this machine."""
    line = Line(port)
    async with await asyncio.start_server(line.lead, "127.0.0.1", 0) as server:
        line.port = server.sockets[0].getsockname()[1]
        try:
            yield line
        finally:
            line.cut()
