"""A connection to the server: opened, encrypted, bound and counted, without ever blocking."""

import contextlib
import errno
import os
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field

from services.runner.confined import Failed, is_no_way
from services.runner.http_child.tasks import READ, WRITE, Steps, Wait
from services.runner.http_child.tcp_info import TcpInfo, tcp_info, unsent_bytes

CONGESTION_CONTROL = "cubic"
"""For what this side sends: the queue that it builds is the one that most of the world's senders build."""
RESET_ON_CLOSE = b"\x01\0\0\0\0\0\0\0"
PIECE = 2**20
_SO_MAX_PACING_RATE = 47
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_UNDER_WAY = {0, errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK}
_UNREACHABLE = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EHOSTDOWN}


@dataclass
class Tally:
    """What all connections to an endpoint have come to."""

    closed_arrived: int = 0
    closed_delivered: int = 0
    open: "set[Connection]" = field(default_factory=set)
    congestion_control: str | None = None

    def arrived_bytes(self) -> int:
        """Return how many bytes have come here: the payload of TCP, HTTP's heads and TLS's records included."""
        return self.closed_arrived + sum(each.arrived_bytes() for each in self.open)

    def delivered_bytes(self) -> int:
        """Return how many bytes have reached the far end."""
        return self.closed_delivered + sum(each.delivered_bytes() for each in self.open)


@dataclass(frozen=True)
class Endpoint:
    """Where to connect to and how: an address that was resolved once, for all connections of a run."""

    host: str
    """The name as the URL has it, for the certificate."""
    family: int
    address: tuple[str | int, ...]
    timeout_s: float
    """How long a connection may be silent."""
    tls: ssl.SSLContext | None = None
    source: str | None = None
    interface: str | None = None
    tally: Tally = field(default_factory=Tally)

    def __str__(self) -> str:
        """Return host and port for people."""
        return f"{self.host}:{self.address[1]}"


@dataclass(eq=False)
class Connection:
    """One TCP connection. Close it in the end: it is reset then, so that nothing stays under way into the next phase."""

    endpoint: Endpoint
    received_bytes: int = 0
    sent_bytes: int = 0
    """As handed to the system; with TLS, before encryption."""
    connect_s: float = 0
    tls_s: float = 0
    _waits: dict[int, Wait] = field(default_factory=dict)
    _last: TcpInfo | None = None
    _low: int = 1

    def __post_init__(self) -> None:
        self.socket = socket.socket(self.endpoint.family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self._low = 1
        self.received_bytes = self.sent_bytes = 0
        self.endpoint.tally.open.add(self)

    def open(self, pacing_bps: float | None = None, segment_bytes: int | None = None) -> Steps[None]:
        """Connect, and shake hands where the endpoint wants TLS; send no faster and in no larger segments than asked (Linux).

        Raises: Failed.
        """
        end = time.monotonic() + self.endpoint.timeout_s
        self._prepare(pacing_bps, segment_bytes)
        began = time.monotonic()
        code = self.socket.connect_ex(self.endpoint.address)
        if code not in _UNDER_WAY:
            raise self._broken(OSError(code, os.strerror(code)), "connecting")
        if code and not (yield Wait(end, self.socket, WRITE)):
            raise Failed("unreachable", f"{self.endpoint} did not answer within {self.endpoint.timeout_s:g} s")
        if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise self._broken(OSError(code, os.strerror(code)), "connecting")
        self.connect_s = time.monotonic() - began
        if self.endpoint.tls:
            began = time.monotonic()
            yield from self._encrypt(self.endpoint.tls, end)
            self.tls_s = time.monotonic() - began

    def send(self, data: bytes | memoryview) -> Steps[None]:
        """Send all of it.

        Raises: Failed.
        """
        rest = memoryview(data)
        while rest:
            sent = self.send_some(rest)
            rest = rest[sent:]
            if not sent:
                yield from self.wait(WRITE)

    def send_some(self, data: memoryview) -> int:
        """Send what the system takes at once, 0 when it takes nothing now.

        Raises: Failed.
        """
        try:
            sent = self.socket.send(data)
        except _AGAIN:
            return 0
        except OSError as error:
            raise self._broken(error, "sending") from None
        self.sent_bytes += sent
        return sent

    def receive_into(self, buffer: memoryview, flags: int = 0) -> int:
        """Receive what is there; 0 at the end of the stream, -1 when there is nothing now.

        Raises: Failed.
        """
        try:
            received = self.socket.recv_into(buffer, len(buffer), flags)
        except _AGAIN:
            return -1
        except OSError as error:
            raise self._broken(error, "receiving") from None
        self.received_bytes += received
        return received

    def wait(self, events: int, until: float | None = None) -> Steps[bool]:
        """Wait for the socket; without a moment given, no longer than it may be silent.

        Return whether it came in time. Raises: Failed, `timeout`, where no moment was given.
        """
        wait = self._waits.get(events)
        if wait is None or wait.socket is not self.socket:
            wait = self._waits[events] = Wait(0, self.socket, events)
        wait.until = until or time.monotonic() + self.endpoint.timeout_s
        came = yield wait
        if not came and until is None:
            raise Failed("timeout", f"{self.endpoint}: nothing came or went for {self.endpoint.timeout_s:g} s")
        return came

    def wake_at(self, size: int) -> None:
        """Call the socket readable only when so many bytes are there: fewer and larger reads (Linux)."""
        if sys.platform == "linux" and size != self._low:
            self._low = size
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def info(self) -> TcpInfo | None:
        """Return what the kernel counts, the last of it when the connection is closed."""
        if self.socket.fileno() >= 0:
            self._last = tcp_info(self.socket) or self._last
        return self._last

    def arrived_bytes(self) -> int:
        """Return how many bytes have come here: as the kernel counts them, where it tells."""
        info = self.info()
        return info.bytes_received if info else self.received_bytes

    def delivered_bytes(self) -> int:
        """Return how many bytes have reached the far end.

        Where the system does not tell: how many were handed to it, less what it says that it still holds.
        """
        info = self.info()
        if info:
            return info.arrived_bytes
        return self.sent_bytes - (unsent_bytes(self.socket) if self.socket.fileno() >= 0 else 0)

    def reopen(self) -> None:
        """Begin anew with another connection."""
        self.close()
        self._last = None
        self.__post_init__()

    def close(self) -> None:
        """Reset the connection."""
        if self.socket.fileno() < 0:
            return
        tally = self.endpoint.tally
        tally.closed_arrived += self.arrived_bytes()
        tally.closed_delivered += self.delivered_bytes()
        tally.open.discard(self)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.socket.close()

    def _prepare(self, pacing_bps: float | None, segment_bytes: int | None) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # not in this kernel: what it uses instead is in the result
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL.encode())
            used = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            self.endpoint.tally.congestion_control = used.rstrip(b"\0").decode("ascii", "replace")
            if segment_bytes:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
            if pacing_bps:
                self.socket.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(pacing_bps / 8))
        bind(self.socket, self.endpoint)

    def _encrypt(self, context: ssl.SSLContext, end: float) -> Steps[None]:
        try:
            self.socket = secure = context.wrap_socket(self.socket, server_hostname=self.endpoint.host, do_handshake_on_connect=False)
            while events := _missing(secure):
                if not (yield Wait(end, secure, events)):
                    raise Failed("timeout", f"{self.endpoint} did not finish the TLS handshake within {self.endpoint.timeout_s:g} s")
        except ssl.SSLCertVerificationError as error:
            hint = "give its authority's certificate as ca_file, if it is yours"
            raise Failed("bad_answer", f"the certificate of {self.endpoint} is not trusted: {error.verify_message}; {hint}") from None
        except OSError as error:
            raise self._broken(error, "the TLS handshake") from None

    def _broken(self, error: OSError, doing: str) -> Failed:
        text = str(error.strerror or error)
        if is_no_way(error):
            return Failed("line_down", f"{self.endpoint} cannot be reached: {text}")
        if error.errno in _UNREACHABLE or doing == "connecting":
            return Failed("unreachable", f"{self.endpoint} cannot be reached: {text}")
        if isinstance(error, ssl.SSLError):
            return Failed("bad_answer", f"{self.endpoint} does not speak TLS as it should: {text}")
        return Failed("truncated", f"{self.endpoint} broke the connection off while {doing}: {text}")


def bind(unbound: socket.socket, endpoint: Endpoint) -> None:
    """Bind a socket to the interface and the address that the endpoint names.

    Raises: Failed, `misconfigured`.
    """
    try:
        if endpoint.interface:
            if sys.platform != "linux":
                raise Failed("misconfigured", "interface: only Linux can bind to one; give a source_address")
            unbound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, endpoint.interface.encode())
        if endpoint.source:
            unbound.bind((endpoint.source, 0))
    except OSError as error:
        what = f"source_address {endpoint.source}" if endpoint.source else f"interface {endpoint.interface}"
        raise Failed("misconfigured", f"{what} cannot be used: {error.strerror or error}") from None


def _missing(secure: ssl.SSLSocket) -> int:
    """Go on with the handshake, and return what it waits for; 0 when it is over."""
    try:
        secure.do_handshake()
    except ssl.SSLWantReadError:
        return READ
    except ssl.SSLWantWriteError:
        return WRITE
    return 0
