"""The stand-in itself: a thread per connection, one request per connection."""

import contextlib
import re
import select
import socket
import struct
import threading
import time
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.standin.faults import FAULTS, ROUTES, STATUSES
from tests.standin.pacer import Pacer
from tests.standin.pages import IMAGE_BYTES, PORTAL, World

PIECE, FAST_PIECE = 4_096, 262_144
BUFFER = 16_384
"""Small, so that what has arrived and what the server has read differ by little: a client that a busy machine holds up for a
while has the server empty the buffers of all its connections, and fills them faster than the line when it goes on."""


RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class StandIn:
    """A speedtest.net of one's own.

    `faults` names a fault per route (or for `all`): an HTTP status, a name in FAULTS, or `refused`: the server stops
    listening at the first request for the route, which it resets. `fault_share` is the share of requests on the route that
    meet with it. `fast` is for a line that is one itself: the stand-in then reads and writes as much at once as it can.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        fast: bool = False,
        download_bps: float | None = None,
        upload_bps: float | None = None,
        faults: dict[str, str] | None = None,
        fault_share: float = 1,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.faults = {route: fault for name, fault in (faults or {}).items() for route in (ROUTES if name == "all" else (name,))}
        if unknown := {*self.faults} - {*ROUTES} | {*self.faults.values()} - {*FAULTS, *STATUSES, "refused"}:
            raise ValueError(f"no such route or fault: {', '.join(sorted(unknown))}")
        self.fault_share = fault_share
        self.down, self.up = Pacer(download_bps), Pacer(upload_bps)
        self.requests: list[tuple[str, str]] = []
        """Every request's route and target, in order."""
        self.clients: set[str] = set()
        """The addresses from which connections came."""
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.piece = FAST_PIECE if fast else PIECE
        if not fast:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._listener.bind((address, port))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        self.host = f"{address}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that aim a process's requests to speedtest.net at this server."""
        return {"http_proxy": f"http://{self.host}", "https_proxy": f"http://{self.host}", "no_proxy": self.host.rpartition(":")[0]}

    def count(self, route: str) -> int:
        """Return how many requests a route has had."""
        return sum(each == route for each, _ in list(self.requests))

    def __enter__(self) -> Self:
        """Start to serve."""
        if self.faults.get("config") == "refused":
            self.refuse()
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop, and break every connection."""
        self.stopping.set()
        self.refuse()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)

    def refuse(self) -> None:
        """Stop listening: from now on connections are refused."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def asked(self, route: str, target: str) -> int:
        """Take note of a request, and return how many the route has had with it: of two at once each has a number of its own."""
        with self._lock:
            self.requests.append((route, target))
            return self.count(route)

    def meets_fault(self, route: str, number: int) -> str | None:
        """Return the fault that this request on a route is to meet with."""
        fault, share = self.faults.get(route), self.fault_share
        return fault if fault and int(number * share) > int((number - 1) * share) else None

    def converse(self, connection: socket.socket) -> None:
        """Answer one request."""
        Exchange(self, connection).answer()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, client = self._listener.accept()
                self.clients.add(client[0])
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            with connection, contextlib.suppress(OSError, ValueError):
                connection.settimeout(60)
                self.converse(connection)
        finally:
            with self._lock:
                self._connections.discard(connection)


class Exchange:
    """One request and its answer."""

    keeps_open = False
    """Whether another request may follow on the connection."""

    def __init__(self, standin: StandIn, connection: socket.socket) -> None:
        """Read the request's head."""
        self._standin, self._connection = standin, connection
        self.host = standin.host
        self.cut = 1.0
        """The share of the body after which the connection is closed."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(PIECE)
            if not piece:
                raise ConnectionError("closed before its request")
            head += piece
        head, _, self._body = head.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = lines[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.body_bytes = int(headers.get("content-length", 0))
        self.route = self.routed()
        self._number = standin.asked(self.route, self.target)

    def routed(self) -> str:
        """Return what of the protocol the request is."""
        return _route(self.method, self.target)

    def answer(self) -> None:
        """Answer as ordered."""
        fault = self._standin.meets_fault(self.route, self._number)
        if fault is None:
            self.serve()
            if self.keeps_open:
                return
        elif fault in STATUSES:
            self.drain()
            self.head(int(fault), length=len(PORTAL) if fault != "204" else 0)
            if fault != "204":
                self.write(PORTAL)
        elif fault == "refused":
            self._standin.refuse()
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            return
        else:
            FAULTS[fault](self)
        self._finish()

    def serve(self) -> None:
        """Answer as speedtest.net would."""
        if self.route == "config":
            self.send(self._standin.world.configuration())
        elif self.route == "servers":
            self.send(self._standin.world.server_list(self.host))
        elif self.route == "latency":
            self.send(b"test=test\n")
        elif self.route == "download":
            self._image()
        elif self.route == "upload":
            self.drain()
            self.send(b"size=%d" % self.body_bytes)
        elif self.route == "portal":
            self.portal()
        else:  # CONNECT among them: there is no https here
            self.head(502, length=0)

    def portal(self) -> None:
        """Answer with a page for people."""
        self.head(200, length=len(PORTAL), headers={"Content-Type": "text/html"})
        self.write(PORTAL)

    def head(self, status: int, *, length: int | None = None, headers: dict[str, str] | None = None) -> None:
        """Send the head of the answer."""
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *([] if self.keeps_open else ["Connection: close"])]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def write(self, data: bytes) -> None:
        """Send bytes; raises OSError when the client is gone."""
        self._connection.sendall(data)

    def drain(self) -> None:
        """Read the request's body at the line's rate."""
        self._standin.up.take(len(self._body))
        rest = self.body_bytes - len(self._body)
        while rest > 0:
            # what a client that has gone left in the buffers would on a real line not have been under way any more
            piece = b"" if self._gone(0) else self._connection.recv(min(self._standin.piece, rest))
            if not piece:
                raise ConnectionError("closed in the middle of its body")
            self._standin.up.take(len(piece))
            rest -= len(piece)

    def open(self) -> bool:
        """Tell whether the server is to go on."""
        return not self._standin.stopping.is_set()

    def wait(self, seconds: float) -> None:
        """Wait until the client has closed, the server stops, or the time is up; read nothing."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.open() and not self._gone(50):
            pass

    def _gone(self, wait_ms: int) -> bool:
        """Tell whether the client has closed or reset the connection."""
        poll = select.poll()
        poll.register(self._connection, select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0))
        return bool(poll.poll(wait_ms))

    def send(self, body: bytes) -> None:
        """Answer with a body."""
        self.head(200, length=len(body), headers={"Content-Type": "text/plain"})
        self.write(body[: int(len(body) * self.cut)])

    def _image(self) -> None:
        found = re.search(r"random(\d+)x", self.target)
        length = IMAGE_BYTES[int(found[1])] if found else 0
        self.head(200, length=length, headers={"Content-Type": "image/jpeg"})
        rest, piece = int(length * self.cut), bytes(self._standin.piece)
        while rest > 0:
            self._standin.down.take(min(len(piece), rest))
            self.write(piece[: min(len(piece), rest)])
            rest -= len(piece)

    def _finish(self) -> None:
        """Close so that the client reads the answer to its end, even if it is still sending."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(0.5)
            while self._connection.recv(65_536):
                pass


def _route(method: str, target: str) -> str:
    path = urlsplit(target).path
    if method == "CONNECT":
        return "connect"
    for part, route in (
        ("/speedtest-config.php", "config"),
        ("/speedtest-servers", "servers"),
        ("/latency.txt", "latency"),
        ("/random", "download"),
        ("/upload.php", "upload"),
        ("/portal", "portal"),
    ):
        if part in path:
            return route
    return "unknown"
