"""A stand-in for M-Lab: the locate service and an NDT7 server on one port, as the NDT7 spec (v0.11) has them, with faults to order."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests import ports

PROTOCOL = Subprotocol("net.measurementlab.ndt.v7")
LOCATE = "/v2/nearest/ndt/ndt7"
MIN_RTT_US, RETRANSMITTED_SHARE = 12_345, 0.25


@dataclass
class Mlab:
    """What the stand-in does, and what it saw."""

    port: int = field(default_factory=ports.take)
    rate_bps: float = 80e6
    """How fast it sends and reads."""
    seconds: float = 0.5
    """How long it sends; the spec has ten."""
    locate_status: int = 200
    status: int | None = None
    """What it answers to a websocket in place of opening it."""
    machines: list[str] = field(default_factory=lambda: ["mlab1"])
    """The machines that the locate service names: `down-…` are not there, all others are this one."""
    breaks: bool = False
    """Hang up in the middle, without a goodbye."""
    silent: bool = False
    """Never say what was measured."""
    paths: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    received: int = 0
    sizes: set[int] = field(default_factory=set)
    """Of the messages that came."""

    @property
    def options(self) -> dict[str, Any]:
        """The engine's options that aim it here."""
        return {"locate": f"http://127.0.0.1:{self.port}{LOCATE}", "timeout_s": 2}

    def located(self) -> str:
        """Return what the locate service answers."""
        results = []
        for machine in self.machines:
            port = 9 if machine.startswith("down") else self.port
            urls = {f"ws:///ndt/v7/{way}": f"ws://127.0.0.1:{port}/ndt/v7/{way}?access_token=secret" for way in ("download", "upload")}
            results.append({"machine": machine, "location": {"city": "Berlin", "country": "DE"}, "urls": urls})
        return json.dumps({"results": results})

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP; None goes on with the websocket."""
        self.paths.append(request.path.partition("?")[0])
        self.agents.add(request.headers.get("User-Agent", ""))
        if request.path.startswith(LOCATE):
            return connection.respond(HTTPStatus(self.locate_status), self.located())
        return connection.respond(HTTPStatus(self.status), "no") if self.status else None

    async def talk(self, connection: ServerConnection) -> None:
        """Serve one direction."""
        assert connection.request
        assert connection.subprotocol == PROTOCOL
        with contextlib.suppress(ConnectionClosed):
            if "/download" in connection.request.path:
                await self._send(connection)
            else:
                await self._receive(connection)

    async def _send(self, connection: ServerConnection) -> None:
        started, sent, message = time.monotonic(), 0, bytes(2**13)
        while (now := time.monotonic() - started) < self.seconds:
            if sent * 8 > now * self.rate_bps:
                await asyncio.sleep(0.005)
                continue
            await connection.send(message)
            sent += len(message)
            if self.breaks and now > self.seconds / 2:
                connection.transport.abort()
                return
            if len(message) * 2 <= min(sent / 16, 2**17):
                message += message
        if not self.silent:
            await connection.send("no measurement")
            tcp = {"MinRTT": MIN_RTT_US, "BytesSent": 1000, "BytesRetrans": int(1000 * RETRANSMITTED_SHARE), "RTT": 20_000}
            await connection.send(json.dumps({"AppInfo": {"ElapsedTime": int(now * 1e6), "NumBytes": sent}, "TCPInfo": tcp}))
        await connection.close()

    async def _receive(self, connection: ServerConnection) -> None:
        started, told_at = time.monotonic(), 0.0
        async for message in connection:
            assert isinstance(message, bytes)
            self.received += len(message)
            self.sizes.add(len(message))
            now = time.monotonic() - started
            await asyncio.sleep(max(0, self.received * 8 / self.rate_bps - now))
            if self.breaks and self.received > 100_000:
                connection.transport.abort()
                return
            if now - told_at > 0.05 and not self.silent:
                told_at = now
                elapsed = int((time.monotonic() - started) * 1e6)
                tcp = {"ElapsedTime": elapsed, "BytesReceived": self.received, "MinRTT": MIN_RTT_US}
                app = {"ElapsedTime": elapsed, "NumBytes": self.received}
                await connection.send(json.dumps({"AppInfo": app, "TCPInfo": tcp}))


@contextlib.asynccontextmanager
async def mlab(**settings: Any) -> AsyncIterator[Mlab]:
    """Run a stand-in."""
    server = Mlab(**settings)
    async with serve(
        *(server.talk, "127.0.0.1", server.port),
        subprotocols=[PROTOCOL],
        process_request=server.answer,
        max_size=2**24,
        compression=None,
        close_timeout=1,
    ):
        yield server
