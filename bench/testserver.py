"""What the test server carries on loopback, in both directions: `make bench-testserver`.

The client is the cheapest there is, so that the server shows: one process that waits with epoll and calls `recv_into` on a
buffer of 1 MiB, or `send` from one, on four raw sockets; it says on each once what it wants, and looks at nothing it gets.
Client and server share the machine's cores. The rate is of bytes that the client received or handed to its kernel within
five seconds, the first half second left out; each direction three times, the median counts.
"""

import os
import selectors
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.machine import describe
from tests.testserver import TestServer, head

STREAMS = 4
WARM_UP_S = 0.5
MEASURE_S = 5.0
ROUNDS = 3
BAR_GBPS = 8.0
ENDLESS = str(10**15)

REQUESTS = {
    "download": head("GET", "/garbage?ckSize=1024") * 16,
    "upload": head("POST", "/empty", f"Content-Length: {ENDLESS}"),
}


def once(server: TestServer, direction: str) -> tuple[float, float, float]:
    """Return the rate in Gbit/s, and the CPU seconds per gigabyte of server and client."""
    process = psutil.Process(server.process.pid)
    buffer = memoryview(bytearray(os.urandom(1_048_576)))
    ready = selectors.EVENT_READ if direction == "download" else selectors.EVENT_WRITE
    with selectors.DefaultSelector() as selector:
        connections = [server.connect() for _ in range(STREAMS)]
        for connection in connections:
            connection.sendall(REQUESTS[direction])
            connection.setblocking(False)
            selector.register(connection, ready)
        move(selector, direction, buffer, WARM_UP_S)
        before = sum(process.cpu_times()[:2]), time.process_time()
        began = time.perf_counter()
        moved = move(selector, direction, buffer, MEASURE_S)
        seconds = time.perf_counter() - began
        gigabytes = moved / 1e9
        server_s, client_s = sum(process.cpu_times()[:2]) - before[0], time.process_time() - before[1]
        for connection in connections:
            connection.close()
    return moved * 8 / seconds / 1e9, server_s / gigabytes, client_s / gigabytes


def move(selector: selectors.BaseSelector, direction: str, buffer: memoryview, seconds: float) -> int:
    """Receive or send for so long and return how many bytes."""
    moved, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for key, _ in selector.select(0.1):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if direction == "upload":
                moved += connection.send(buffer)
                continue
            got = connection.recv_into(buffer)
            assert got, "the server closed"
            moved += got
    return moved


def main() -> int:
    """Measure and print; exit with 1 when the bar is missed."""
    sys.stdout.write(f"{describe()}\n")
    missed = False
    with tempfile.TemporaryDirectory(prefix="refresher-bench-") as directory:
        server = TestServer(Path(directory), bytes=ENDLESS, udp="false")
        for direction in REQUESTS:
            rounds = [once(server, direction) for _ in range(ROUNDS)]
            rate, server_s, client_s = (statistics.median(each) for each in zip(*rounds, strict=True))
            missed |= rate < BAR_GBPS
            rates = ", ".join(f"{each[0]:.1f}" for each in rounds)
            sys.stdout.write(
                f"{direction}: {rate:.1f} Gbit/s of {rates} (bar {BAR_GBPS:.0f}), {STREAMS} streams; "
                f"CPU seconds per gigabyte: server {server_s:.2f}, client {client_s:.2f}\n"
            )
        memory = psutil.Process(server.process.pid).memory_info().rss / 2**20
        sys.stdout.write(f"memory of the server: {memory:.0f} MiB\n")
        server.stop()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
