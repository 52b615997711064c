"""A test server as a process of its own, and clients that say exactly what they want."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests import ports
from tests.http import sample
from tests.servers import stop


class TestServer:
    """`python -m services.testserver` with settings of a test's own: `TestServer(path, seconds="1")`; its log is in `log`."""

    __test__ = False

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", scheme: str = "http", **settings: str) -> None:
        self.port, self.udp_port = ports.take(), ports.take()
        self.log = directory / f"testserver-{self.port}.log"
        first = host.partition(",")[0]
        self.url = f"{scheme}://[{first}]:{self.port}" if ":" in first else f"{scheme}://{first}:{self.port}"
        given = {"host": host, "port": str(self.port), "udp_port": str(self.udp_port), **settings}
        self.environment = {f"REFRESHER_TESTSERVER_{name.upper()}": value for name, value in given.items()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.testserver"],
                env={**os.environ, **self.environment, "REFRESHER_LOG_FORMAT": "json"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for("listening")

    def lines(self, action: str) -> list[dict[str, Any]]:
        """Return the log lines of an action."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}"))
        return [line for line in lines if line["action"] == action]

    def wait_for(self, action: str, deadline_s: float = 20) -> dict[str, Any]:
        """Wait for a log line and return the first of its kind."""
        end = time.monotonic() + deadline_s
        while not (found := self.lines(action)):
            assert self.process.poll() is None or time.monotonic() < end - deadline_s + 1, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return found[0]

    def metric(self, name: str) -> float:
        """Return the value of a sample as it stands in `/metrics`, labels included; 0 when it is not there."""
        return sample(f"{self.url}/metrics", name)

    def wait_for_metric(self, sample: str, value: float, deadline_s: float = 10) -> None:
        """Wait until a sample has a value."""
        end = time.monotonic() + deadline_s
        while (now := self.metric(sample)) != value:
            assert time.monotonic() < end, f"{sample} is {now}, not {value}"
            time.sleep(0.02)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Return a connection; a small receive buffer makes a client that soon takes no more."""
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(20)
        try:
            connection.connect(("127.0.0.1", self.port))
        except OSError:
            connection.close()
            raise
        return connection

    def say(self, *pieces: bytes) -> bytes:
        """Send pieces on one connection and return all that comes until the server closes it."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return until_closed(connection)

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        stop(self.process)
        return self.process.returncode


def head(method: str, target: str, *headers: str, host: str = "here") -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def until_closed(connection: socket.socket) -> bytes:
    """Return all that comes until the other end closes; a reset is an end too."""
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1_048_576):
            got += piece
    return bytes(got)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one answer that has a length."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = connection.recv(1)
        assert piece, f"closed after {got!r}"
        got += piece
    first, *lines = got.decode().rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = bytearray()
    while len(body) < int(headers.get("content-length", 0)):
        piece = connection.recv(int(headers["content-length"]) - len(body))
        assert piece, f"closed after {len(body)} bytes of a body"
        body += piece
    return int(first.split(" ")[1]), headers, bytes(body)
