"""What processes take of the machine between two moments."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import psutil

from tests.services import ServiceProcess

MB = 1e6


@dataclass(frozen=True)
class Spent:
    """What one process took."""

    cpu: float
    """The share of one core, on average."""
    growth_mb: float
    """By how much its memory had grown when it was largest."""


@asynccontextmanager
async def watched(services: Iterable[ServiceProcess]) -> AsyncIterator[dict[str, Spent]]:
    """Watch services for the length of the block; what they took is in the dictionary when it ends."""
    spent: dict[str, Spent] = {}
    watching = [_Watched(service) for service in services]
    sampling = asyncio.create_task(_sample(watching))
    try:
        yield spent
    finally:
        sampling.cancel()
        for each in watching:
            each.look()
            spent[each.name] = each.spent()


async def _sample(watching: "list[_Watched]") -> None:
    while True:
        for each in watching:
            each.look()
        await asyncio.sleep(0.5)


class _Watched:
    def __init__(self, service: ServiceProcess) -> None:
        self.name = service.name
        self._process = psutil.Process(service.process.pid)
        self._started, self._cpu_before, self._memory_before = time.monotonic(), self._cpu(), self._process.memory_info().rss
        self._seen = (self._started, self._cpu_before)
        self._largest = self._memory_before

    def look(self) -> None:
        with suppress(psutil.NoSuchProcess):  # killed meanwhile: what was seen last counts
            self._largest = max(self._largest, self._process.memory_info().rss)
            self._seen = (time.monotonic(), self._cpu())

    def spent(self) -> Spent:
        at, cpu = self._seen
        return Spent((cpu - self._cpu_before) / max(at - self._started, 0.1), (self._largest - self._memory_before) / MB)

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
