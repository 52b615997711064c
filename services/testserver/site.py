"""What the connections of one server share: its settings, who is connected, and the clock that ends what takes too long."""

import asyncio
import contextlib
import time
from typing import Protocol

from services.testserver.answers import Answers
from services.testserver.metrics import Metrics
from services.testserver.settings import TestserverSettings
from services.testserver.transfers import Transfers

SWEEP_EVERY_S = 0.25
FILES_PER_CONNECTION = 2
"""For each that is admitted, one may be told that it is not."""
STOP_WITHIN_S = 5.0
"""So long transfers may go on when the server is stopped."""


class Watched(Protocol):
    """A connection, as seen from here."""

    def check(self, now: float) -> None:
        """End what takes too long."""

    def stop(self, *, now: bool) -> None:
        """End where nothing is under way; with `now`, everywhere."""


class Site:
    """Of one server."""

    def __init__(self, settings: TestserverSettings, metrics: Metrics, answers: Answers) -> None:
        self.settings = settings
        self.metrics = metrics
        self.answers = answers
        self.transfers = Transfers(settings.testserver_transfers, metrics)
        self.stopping = False
        self._admitted: set[Watched] = set()
        self._refused: set[Watched] = set()
        """They are told why, which takes a moment."""
        self._empty = asyncio.Event()

    def admit(self, connection: Watched) -> bool:
        """Remember a connection until it is forgotten; False when there are too many, and it is to be refused."""
        admitted = len(self._admitted) < self.settings.testserver_connections
        (self._admitted if admitted else self._refused).add(connection)
        self.metrics.connections.set(len(self._admitted))
        return admitted

    def crowded(self, entering: int) -> bool:
        """Tell whether not even a refusal can be afforded now, with so many on their way in."""
        return entering + len(self._admitted) + len(self._refused) >= FILES_PER_CONNECTION * self.settings.testserver_connections

    def forget(self, connection: Watched) -> None:
        """Forget one that is closed."""
        self._admitted.discard(connection)
        self._refused.discard(connection)
        if not (self._admitted or self._refused):
            self._empty.set()
        self.metrics.connections.set(len(self._admitted))

    async def watch(self) -> None:
        """Check every connection a few times a second."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            for connection in (*self._admitted, *self._refused):
                connection.check(time.monotonic())
            self.transfers.sweep()

    async def stop(self) -> None:
        """Let what is under way end, for a while, then cut it; returns when every connection is closed."""
        self.stopping = True
        for now in (False, True):
            open_now = (*self._admitted, *self._refused)
            self._empty.clear()
            for connection in open_now:
                connection.stop(now=now)
            if open_now:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._empty.wait(), STOP_WITHIN_S)
        self.transfers.sweep(all_over=True)
