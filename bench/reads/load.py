"""Requests over connections that stay open, and how long each took."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

_numbers = itertools.count()


@dataclass(frozen=True)
class Taken:
    """What a round of requests took."""

    seconds: list[float]
    """Of each request, sorted."""
    per_second: float

    def percentile_ms(self, share: float) -> float:
        """Return how long a request took at most that this share of them did not exceed, in ms."""
        return self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * share))] * 1e3


async def round_of(port: int, path_of: Callable[[int], str], connections: int, for_s: float, at_least: int = 1) -> Taken:
    """Ask for a path over and over, on so many connections at once; `path_of` is given a number that no other request had.

    Goes on until the time is over and each connection has asked `at_least` times.
    Raises: ValueError for an answer other than 200.
    """
    began = time.perf_counter()
    taken = await asyncio.gather(*(_ask(port, path_of, began + for_s, at_least) for _ in range(connections)))
    seconds = sorted(each for connection in taken for each in connection)
    return Taken(seconds, len(seconds) / (time.perf_counter() - began))


async def _ask(port: int, path_of: Callable[[int], str], until: float, at_least: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    taken: list[float] = []
    while time.perf_counter() < until or len(taken) < at_least:
        path = path_of(next(_numbers))
        question = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        began = time.perf_counter()
        writer.write(question)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        body = await reader.readexactly(int(head.lower().partition("\r\ncontent-length:")[2].partition("\r\n")[0]))
        taken.append(time.perf_counter() - began)
        if not head.startswith("HTTP/1.1 200"):
            raise ValueError(f"{path}: {head.splitlines()[0]} {body[:300]!r}")
    writer.close()
    return taken
