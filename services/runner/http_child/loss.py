"""Packets lost on a line that is not full: of a paced upload, and of datagrams that the test server echoes.

A full line loses packets because it is full; what a paced flow loses is lost on the way (docs/accuracy.md).
"""

import contextlib
import errno
import math
import socket
import time
from dataclasses import dataclass

from services.runner.confined import Failed
from services.runner.http_child.connection import Connection, Endpoint, bind
from services.runner.http_child.exchange import Exchange
from services.runner.http_child.service import Service, Udp
from services.runner.http_child.streams import send_body
from services.runner.http_child.tasks import READ, Loop, Steps, Wait
from services.runner.http_child.tcp_info import TcpInfo

PACE_BPS = 5e6
FASTEST_PACE_BPS = 25e6
SHARE_OF_RATE = 0.25
SEGMENTS, LIGHT_SEGMENTS = 30_000, 3_500
SEGMENT_BYTES = 200
"""Instead of 1,448: more packets at the same rate, for it is packets that are counted."""
LEAST_SEGMENTS = 500
SEGMENTS_PER_S = 400
"""What one connection is good for: with 0.5 % of its packets lost and 40 ms TCP carries 430 (√(3/2p) / RTT), however small."""
LONGEST_S, SHORTEST_S = 5.0, 1.5
DATAGRAMS = 4_000
LEAST_DATAGRAMS = 500
DATAGRAM_BYTES = 32
ON_THE_LINE_BYTES = DATAGRAM_BYTES + 46
"""With the headers of UDP, IPv4 and Ethernet."""
DATAGRAMS_PER_S = 1_500
LATE_S = 1.0
AT_ONCE = 32
"""A few kB, which every queue has room for."""


@dataclass(frozen=True)
class Loss:
    """How many were sent, and how many of them were lost."""

    sent: int
    lost: int

    @property
    def share(self) -> float:
        """Return the share that was lost."""
        return self.lost / self.sent


def pace_bps(rate_bps: float | None) -> float:
    """Return how fast to send on a line of this upload rate so that it stays far from full."""
    return PACE_BPS if rate_bps is None else min(FASTEST_PACE_BPS, SHARE_OF_RATE * rate_bps)


def of_paced_upload(loop: Loop, endpoint: Endpoint, service: Service, pace: float, seconds: float, segments: int) -> Loss | None:
    """Return what the kernel had to send again of uploads at a pace; None where it does not tell, or little was sent.

    They share the pace, on so many connections that loss, which slows each of them down, leaves enough packets to count. A
    retransmission that the receiver reports as needless (a duplicate SACK, RFC 2883) was no loss.
    Raises: Failed.
    """
    wanted_per_s = min(segments / seconds, pace / 8 / SEGMENT_BYTES)
    connections = [Connection(endpoint) for _ in range(math.ceil(wanted_per_s / SEGMENTS_PER_S))]
    tasks = [loop.start(_paced(connection, service, pace / len(connections))) for connection in connections]
    end, sent, infos = time.monotonic() + seconds, 0, list[TcpInfo]()
    while time.monotonic() < end and sent < segments and not all(task.done for task in tasks):
        loop.run(min(end, time.monotonic() + 0.1))
        infos = [info for connection in connections if (info := connection.info())]
        sent = sum(info.data_segs_out for info in infos)
        if not infos:
            break
    for task in tasks:
        loop.stop(task)
    if not sent and (problem := next((task.problem for task in tasks if task.problem), None)):
        raise problem
    if sent < LEAST_SEGMENTS:
        return None
    return Loss(sent, max(0, sum(info.total_retrans - info.dsack_dups for info in infos)))


def _paced(connection: Connection, service: Service, pace: float) -> Steps[None]:
    try:
        yield from connection.open(pace, SEGMENT_BYTES)
        exchange = Exchange(connection)
        while True:
            request = service.upload(service.upload_bytes)
            yield from connection.send(request.head())
            early = yield from send_body(connection, service.upload_bytes, request)
            answer = yield from exchange.answer(request, early)
            yield from exchange.body(answer, request)
            if not answer.keeps_open:
                return
    finally:
        connection.close()


def of_echoes(endpoint: Endpoint, udp: Udp, pace: float, seconds: float) -> Steps[Loss | None]:
    """Return how many of the datagrams did not come back: lost on the way there or on the way back.

    None when none did, or the line is too slow for enough of them.
    """
    with socket.socket(endpoint.family, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        try:
            bind(line, endpoint)
            line.connect((endpoint.address[0], udp.port, *endpoint.address[2:]))
        except OSError as error:
            raise Failed("unreachable", f"{endpoint.host}, UDP port {udp.port}: {error.strerror}") from None
        back: set[int] = set()
        per_s = min(DATAGRAMS_PER_S, pace / 8 / ON_THE_LINE_BYTES)
        sent, most = 0, min(DATAGRAMS, udp.datagrams, int(per_s * (seconds - LATE_S)))
        if most < LEAST_DATAGRAMS:
            return None
        began = time.monotonic()
        end = began + seconds - LATE_S
        while sent < most and (now := time.monotonic()) < end:
            if (now - began) * per_s > sent + AT_ONCE:  # held up: what was due meanwhile would overflow a queue if it went out at once
                began = now - sent / per_s
            due = min(most, int((now - began) * per_s) + 1)
            while sent < due and _sent(line, udp.token + sent.to_bytes(4, "big") + bytes(DATAGRAM_BYTES - 20)):
                sent += 1
            yield Wait(time.monotonic() + 0.002)
            _collect(line, back, most)
        end = time.monotonic() + LATE_S
        while len(back) < sent and (yield Wait(end, line, READ)):
            _collect(line, back, most)
        return Loss(sent, sent - len(back)) if back and sent >= LEAST_DATAGRAMS else None


def _sent(line: socket.socket, datagram: bytes) -> bool:
    """Send, and return False where this machine has no room now: it was not the line that lost it."""
    try:
        line.send(datagram)
    except OSError as error:
        return error.errno not in {errno.EAGAIN, errno.ENOBUFS}
    return True


def _collect(line: socket.socket, back: set[int], most: int) -> None:
    with contextlib.suppress(OSError):
        for _ in range(1_000):
            number = int.from_bytes(line.recv(2_048)[16:20], "big")
            if number < most:
                back.add(number)
