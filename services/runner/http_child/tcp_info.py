"""What the kernel knows of a TCP connection: `struct tcp_info` of include/uapi/linux/tcp.h."""

import socket
import struct
import sys
from dataclasses import dataclass

_LAYOUT = struct.Struct("=8B24I4Q6I4Q2I2Q4I")
_LEAST_BYTES = 192
"""Up to `sndbuf_limited`, which Linux 4.10 brought."""
_SO_NWRITE = 0x1024
"""macOS: how many bytes of the send buffer are not acknowledged."""


@dataclass(frozen=True)
class TcpInfo:
    """A connection's counters since it was opened; times in microseconds."""

    snd_mss: int
    sacked: int
    rtt: int
    min_rtt: int
    total_retrans: int
    bytes_acked: int
    bytes_received: int
    data_segs_out: int
    busy_time: int
    rwnd_limited: int
    sndbuf_limited: int
    dsack_dups: int
    """Retransmissions that proved needless; 0 before Linux 5.4."""
    rcv_ooopack: int
    """Packets that came after a hole, or a duplicate: no measure of loss, but without loss there are none; 0 before Linux 5.4."""

    @property
    def arrived_bytes(self) -> int:
        """What the far end has: acknowledged in order, and selectively (whole segments) behind a hole."""
        return self.bytes_acked + self.sacked * self.snd_mss


def tcp_info(connection: socket.socket) -> TcpInfo | None:
    """Return what the kernel knows, None where it does not tell (macOS, old Linux) or the connection is gone."""
    if sys.platform != "linux":
        return None
    try:
        raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
    except OSError:
        return None
    if len(raw) < _LEAST_BYTES:
        return None
    told = _LAYOUT.unpack(raw.ljust(_LAYOUT.size, b"\0"))
    return TcpInfo(
        snd_mss=told[10],
        sacked=told[13],
        rtt=told[23],
        min_rtt=told[39],
        total_retrans=told[31],
        bytes_acked=told[34],
        bytes_received=told[35],
        data_segs_out=told[41],
        busy_time=told[43],
        rwnd_limited=told[44],
        sndbuf_limited=told[45],
        dsack_dups=told[50],
        rcv_ooopack=told[52],
    )


def unsent_bytes(connection: socket.socket) -> int:
    """Return what of the bytes handed over is still here, where TCP_INFO is missing; 0 where the system says nothing of it."""
    if sys.platform != "darwin":
        return 0
    try:
        held: int = struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, _SO_NWRITE, 4))[0]
    except OSError:
        return 0
    return held
