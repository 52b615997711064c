"""Who transfers what: the limit per address, the metrics, and one line in the log per test."""

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from services.testserver.addresses import owner
from services.testserver.metrics import Metrics

log = logging.getLogger(__name__)

Direction = Literal["download", "upload"]
"""As the client sees it."""
QUIET_S = 3.0
"""A test is over when its client has transferred nothing that way for this long: clients stagger and repeat their requests."""


@dataclass
class Test:
    """The transfers of one client in one direction, without a pause between them."""

    __test__ = False  # its name looks like one of pytest's classes

    client: str
    direction: Direction
    started_at: float
    under_way: int = 0
    streams: int = 0
    """The most transfers at once."""
    last_at: float = 0
    bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class Transfer:
    """One download or upload. `bytes` is what has passed; whoever moves them adds to it."""

    test: Test
    started_at: float
    bytes: int = 0
    counted: int = 0
    outcome: str = "complete"
    """How it ends when nothing comes between."""


class Transfers:
    """All transfers under way, and the tests that they belong to."""

    def __init__(self, at_once: int, metrics: Metrics) -> None:
        self._at_once = at_once
        self._metrics = metrics
        self._by_owner: Counter[str] = Counter()
        self._tests: dict[tuple[str, Direction], Test] = {}
        self.under_way: set[Transfer] = set()

    def begin(self, client: str, direction: Direction) -> Transfer | None:
        """Return a new transfer of a client, to be ended; None when it has too many."""
        if self._by_owner[owner(client)] >= self._at_once:
            return None
        self._by_owner[owner(client)] += 1
        now = time.monotonic()
        test = self._tests.setdefault((client, direction), Test(client, direction, now))
        test.under_way += 1
        test.streams = max(test.streams, test.under_way)
        transfer = Transfer(test, now)
        self.under_way.add(transfer)
        self._metrics.in_flight.labels(direction).inc()
        return transfer

    def end(self, transfer: Transfer, outcome: str) -> None:
        """End one: it is `complete`, or was cut for `bytes`, `seconds`, `idle` or `stopping`, or the client `left`."""
        self._count(transfer)
        test = transfer.test
        self.under_way.discard(transfer)
        self._by_owner[owner(test.client)] -= 1
        if not self._by_owner[owner(test.client)]:
            del self._by_owner[owner(test.client)]
        test.under_way -= 1
        test.last_at = time.monotonic()
        test.outcomes[outcome] += 1
        self._metrics.in_flight.labels(test.direction).dec()
        self._metrics.transfers.labels(test.direction, outcome).inc()

    def sweep(self, *, all_over: bool = False) -> None:
        """Bring the metrics up to date and write down the tests that are over."""
        for transfer in self.under_way:
            self._count(transfer)
        quiet_since = time.monotonic() - QUIET_S
        for key, test in list(self._tests.items()):
            if not test.under_way and (all_over or test.last_at < quiet_since):
                del self._tests[key]
                _log(test)

    def _count(self, transfer: Transfer) -> None:
        fresh = transfer.bytes - transfer.counted
        transfer.counted = transfer.bytes
        transfer.test.bytes += fresh
        self._metrics.bytes.labels(transfer.test.direction).inc(fresh)


def _log(test: Test) -> None:
    seconds = test.last_at - test.started_at
    log.info(
        "test ended",
        extra={
            "client": test.client,
            "direction": test.direction,
            "bytes": test.bytes,
            "seconds": round(seconds, 3),
            "streams": test.streams,
            "transfers": dict(test.outcomes),
        },
    )
