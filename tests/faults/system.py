"""The services of a scenario as processes of their own; the scenario is their supervisor."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.services import ServiceProcess


class System:
    """Services on one bus and one database; `host` and `inside` as for ServiceProcess."""

    def __init__(self, directory: Path, nats_url: str, database_url: str, *, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        self._make = partial(ServiceProcess, directory=directory, nats_url=nats_url, database_url=database_url, host=host, inside=inside)
        self.services: list[ServiceProcess] = []

    async def start(self, *names: str, **environment: str) -> ServiceProcess:
        """Start services, wait until all are ready and return the last one."""
        started = [self._make(name, **environment) for name in names]
        self.services += started
        for service in started:
            await asyncio.to_thread(service.wait_until_ready, 60)
        return started[-1]

    def named(self, name: str) -> list[ServiceProcess]:
        """Return the processes of one service."""
        return [service for service in self.services if service.name == name]

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator["Counter[str]"]:
        """Start every service again that ends, at once, for the length of the block; give how often each had ended."""
        ended: Counter[str] = Counter()

        async def supervise() -> None:
            while True:
                for service in self.services:
                    if service.process.poll() is not None:
                        ended[service.name] += 1
                        service.start()
                await asyncio.sleep(0.1)

        supervising = asyncio.create_task(supervise())
        try:
            yield ended
        finally:
            supervising.cancel()

    def must_live(self) -> None:
        """Fail if a service has ended by itself."""
        for service in self.services:
            assert service.process.poll() is None, f"{service.name} ended:\n{service.log.read_text()[-3_000:]}"

    def stop(self) -> None:
        """Stop all, those that are frozen too."""
        for service in self.services:
            if service.process.poll() is None:
                service.process.send_signal(signal.SIGCONT)
                service.process.terminate()
        for service in self.services:
            service.stop()


async def kill(service: ServiceProcess) -> datetime:
    """Kill a service without warning, start it again at once as a supervisor would, and return when it was killed."""
    service.kill()
    at = datetime.now(UTC)
    service.start()
    return at


@asynccontextmanager
async def running(system: System) -> AsyncIterator[System]:
    """Stop a system at the end, whatever happens."""
    try:
        yield system
    finally:
        await asyncio.to_thread(system.stop)


async def at_an_instant(after_s: float) -> None:
    """Wait until so long after the next full second, when ticks are being published."""
    await asyncio.sleep((after_s - time.time()) % 1)
