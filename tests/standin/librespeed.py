"""A stand-in for the backends of LibreSpeed and Cloudflare: connections stay open, rates are those of the line, faults come to order."""

import json
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.standin.server import Exchange, StandIn

PIECE = 16_384


class LibreSpeed(StandIn):
    """A LibreSpeed backend of one's own, for `http://{host}/backend`.

    `certificate` is a file with key and certificate: then it speaks HTTPS. `chunked` answers without a length, as PHP does;
    `keeps_open` is whether a connection serves more than one request.
    """

    def __init__(self, *, certificate: Path | None = None, chunked: bool = False, keeps_open: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.chunked, self.keeps_open = chunked, keeps_open
        self.listed: list[Any] = []
        """The list of servers that it gives out, at `/servers.json`."""
        self.url = f"{'https' if certificate else 'http'}://{self.host}"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if self._context:
            self._context.load_cert_chain(str(certificate))

    def converse(self, connection: socket.socket) -> None:
        """Answer one request after another."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self._context
        connection.getpeername()  # of a client that has gone again the ssl module would make a socket that nobody closes
        wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) if context else connection
        with wrapped as conversation:
            if isinstance(conversation, ssl.SSLSocket):
                conversation.do_handshake()
            while True:
                exchange = BackendExchange(self, conversation)
                exchange.answer()
                if not self.keeps_open:
                    return


class BackendExchange(Exchange):
    """One request to the backend and its answer."""

    def __init__(self, standin: LibreSpeed, connection: socket.socket) -> None:
        """Read the request's head."""
        self.backend, self.keeps_open = standin, standin.keeps_open
        super().__init__(standin, connection)
        if standin.meets_fault(self.route, self._number):
            self.keeps_open = False

    def head(self, status: int, *, length: int | None = None, headers: dict[str, str] | None = None) -> None:
        """Send the head of the answer, which asks to keep the connection, as LibreSpeed's PHP does, also where its server closes it."""
        super().head(status, length=length, headers={"Connection": "keep-alive", **(headers or {})})

    def routed(self) -> str:
        """Return what of the protocol the request is."""
        path = urlsplit(self.target).path
        if path == "/__down":
            return "latency" if self.target.endswith("bytes=0") else "download"
        if path.endswith("/backend/garbage.php"):
            return "download"
        if path.endswith("/backend/empty.php"):
            return "upload" if self.method == "POST" else "latency"
        return {
            "/__up": "upload",
            "/cdn-cgi/trace": "trace",
            "/backend/getIP.php": "config",
            "/servers.json": "servers",
            "/portal": "portal",
        }.get(path, "unknown")

    def serve(self) -> None:
        """Answer as LibreSpeed would."""
        if self.route == "latency":
            self.head(200, length=0)
        elif self.route == "upload":
            self.drain()
            self.head(200, length=0)
        elif self.route == "download":
            wanted = {name: int(values[0]) for name, values in parse_qs(urlsplit(self.target).query).items()}
            self._garbage(wanted["bytes"] if "bytes" in wanted else wanted["ckSize"] * 2**20)
        elif self.route == "config":
            self.send(b'{"processedString": "192.0.2.7 - Stand-in Telecom, DE", "rawIspInfo": ""}')
        elif self.route == "trace":
            self.send(b"fl=1\nip=192.0.2.7\ncolo=FRA\nloc=DE\n")
        elif self.route == "servers":
            self.send(json.dumps(self.backend.listed).encode())
        elif self.route == "portal":
            self.portal()
        else:
            self.head(404, length=0)

    def _garbage(self, size: int) -> None:
        chunked = self.backend.chunked
        self.head(200, **({"headers": {"Transfer-Encoding": "chunked"}} if chunked else {"length": size}))
        rest, piece = size if self.cut == 1 else 2**20, bytes(PIECE)
        while rest > 0 and self.open():
            self.backend.down.take(PIECE)
            self.write(b"%x\r\n%s\r\n" % (PIECE, piece) if chunked else piece[:rest])
            rest -= PIECE
