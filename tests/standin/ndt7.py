"""A stand-in for M-Lab: the locate service and an NDT7 server on one port, as the NDT7 spec (v0.11) has them, with faults to order."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests import ports
from tests.standin.pacer import Passed

PROTOCOL = Subprotocol("net.measurementlab.ndt.v7")
LOCATE = "/v2/nearest/ndt/ndt7"
MIN_RTT_US, RETRANSMITTED_SHARE = 12_345, 0.25
HOSTILE = {
    "long-text": (b"\x81\x7f" + (100 * 2**20).to_bytes(8), b" " * 65_536),
    "fitting-text": (b"\x81\x7f" + (2**23).to_bytes(8), b" " * 65_536),
    "fragments": (b"\x01\x01 ", (b"\x00\x7e\x04\x00" + b" " * 1_024) * 20),
    "deep-json": (b"", (b"\x81\x7e\x4e\x20" + b"[" * 20_000) * 10),
    "pings": (b"", (b"\x89\x7d" + b" " * 125) * 500),
    "pongs": (b"", (b"\x8a\x7d" + b" " * 125) * 500),
    "tiny-frames": (b"", b"\x82\x00" * 32_768),
    "words": (b"", b"\x81\x7e\x10\x00" + b" " * 4_096),
    "huge-frame": (b"\x82\x7f" + (2**62).to_bytes(8), bytes(65_536)),
    "no-frames": (b"", b"HTTP/1.1 200 OK\r\n\r\n<html>" * 1_000),
    "masked": (b"", b"\x82\xfe\x10\x00" + bytes(4_100)),
    "drip": (b"\x82\x7f" + (2**20).to_bytes(8), b"."),
    "still": (b"", b""),
    "hangs-up": (b"\x82\x7f" + (2**16).to_bytes(8) + bytes(2**16), None),
}
"""What a server sends once, and then for as long as anybody listens; None hangs up."""
NO_HANDSHAKE = {
    "html": (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", b""),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/?secret\r\nContent-Length: 0\r\n\r\n", b""),
    "garbage": (b"\x00\xff\r\n" * 10, b""),
    "endless-head": (b"HTTP/1.1 101 Switching Protocols\r\n", b"X-More: and more\r\n" * 1_000),
    "endless-page": (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65_536),
    "no-answer": (b"", b""),
    "dripping-head": (b"HTTP/1.1 101 ", b"S"),
    "wrong-key": (b"HTTP/1.1 101 Hi\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: no\r\n\r\n", b""),
}


@dataclass
class Mlab:
    """What the stand-in does, and what it saw."""

    port: int = field(default_factory=ports.take)
    rate_bps: float = 80e6
    """How fast it sends and reads."""
    seconds: float = 1.5
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
    hostile: str | None = None
    """What it does once the websocket is open, of `HOSTILE`."""
    certificate: ssl.SSLContext | None = None
    """Encrypt with it."""
    paths: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    clients: list[str] = field(default_factory=list)
    """The addresses that asked."""
    down: Passed = field(default_factory=Passed)
    up: Passed = field(default_factory=Passed)
    received: int = 0
    """By its program: of what came up the rest is yet to be read."""
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
            scheme = "wss" if self.certificate else "ws"
            urls = {
                f"{scheme}:///ndt/v7/{way}": f"{scheme}://127.0.0.1:{port}/ndt/v7/{way}?access_token=secret"
                for way in ("download", "upload")
            }
            results.append({"machine": machine, "location": {"city": "Berlin", "country": "DE"}, "urls": urls})
        return json.dumps({"results": results})

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP; None goes on with the websocket."""
        self.paths.append(request.path.partition("?")[0])
        self.clients.append(connection.remote_address[0])
        self.agents.add(request.headers.get("User-Agent", ""))
        if request.path.startswith(LOCATE):
            return connection.respond(HTTPStatus(self.locate_status), self.located())
        return connection.respond(HTTPStatus(self.status), "no") if self.status else None

    async def talk(self, connection: ServerConnection) -> None:
        """Serve one direction."""
        assert connection.request
        assert connection.subprotocol == PROTOCOL
        with contextlib.suppress(ConnectionClosed, ConnectionError):
            if self.hostile:
                await pour(connection.transport, *HOSTILE[self.hostile])
            elif "/download" in connection.request.path:
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
            self.down.add(len(message))
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
            if self.breaks and self.received > 100_000:
                connection.transport.abort()
                return
            now = time.monotonic() - started
            if now - told_at > 0.05 and not self.silent:
                told_at = now
                elapsed = int(now * 1e6)
                tcp = {"ElapsedTime": elapsed, "BytesReceived": self.received, "MinRTT": MIN_RTT_US}
                app = {"ElapsedTime": elapsed, "NumBytes": self.received}
                await connection.send(json.dumps({"AppInfo": app, "TCPInfo": tcp}))


class Paced(ServerConnection):
    """A connection that is read at a rate, as from a line."""

    rate_bps = 0.0
    passed: Passed
    free_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Take what came, and no more until it would have passed."""
        super().data_received(data)
        self.passed.add(len(data))
        now = time.monotonic()
        self.free_at = max(self.free_at, now - 0.01) + len(data) * 8 / self.rate_bps
        if self.free_at > now:
            self.transport.pause_reading()
            self.loop.call_later(self.free_at - now, self.transport.resume_reading)


async def pour(transport: asyncio.Transport, once: bytes, again: bytes | None) -> None:
    """Send something once and something else again and again, little by little where it is little, until nobody listens."""
    transport.write(once)
    if again is None:
        transport.close()
        return
    while not transport.is_closing():
        if transport.get_write_buffer_size() < 2**20:
            transport.write(again)
        await asyncio.sleep(0.05 if len(again) < 2 else 0.002)


@contextlib.asynccontextmanager
async def no_ndt7(name: str) -> AsyncIterator[str]:
    """Run a server that does one of `NO_HANDSHAKE`, and give its address."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if await reader.read(2**16):
                await pour(writer.transport, *NO_HANDSHAKE[name])
        writer.transport.abort()

    async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def mlab(**settings: Any) -> AsyncIterator[Mlab]:
    """Run a stand-in."""
    server = Mlab(**settings)
    listener = socket.socket()
    # small, so that what a client has sent and what the server has read differ by little
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", server.port))
    async with serve(
        server.talk,
        sock=listener,
        create_connection=type("Here", (Paced,), {"rate_bps": server.rate_bps, "passed": server.up}),
        max_queue=None,
        subprotocols=[PROTOCOL],
        process_request=server.answer,
        max_size=2**24,
        compression=None,
        close_timeout=1,
        ssl=server.certificate,
    ):
        yield server
