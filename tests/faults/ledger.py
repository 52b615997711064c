"""What was due, and what became of it: instants from the schedules on the one side, rows on the other."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from shared import subjects
from shared.due import instants
from shared.events import Measurement, Result, Status
from shared.publish import publish_until_stored
from shared.schedules import CatchUp, Interval, Schedule
from tests.integration.conftest import Bus

SETTLED_WITHIN_S = 90.0
"""How long an instant that nobody ran may be without its row."""

ELSEWHERE = "elsewhere"
"""The site of results that are published as a runner would, beside those of the schedules."""

Due = tuple[str, str, datetime] | UUID
"""What is due a row: schedule, site and instant; or the run of a result that was published."""


@dataclass(frozen=True)
class Account:
    """What was due a row against the rows that are there."""

    expected: "Counter[Due]"
    stored: "Counter[Due]"
    statuses: "Counter[str]" = field(default_factory=Counter)

    @property
    def missing(self) -> "Counter[Due]":
        """What has no row."""
        return self.expected - self.stored

    @property
    def surplus(self) -> "Counter[Due]":
        """The rows too many: a second one for an instant, or one for what was never due."""
        return self.stored - self.expected

    @property
    def is_even(self) -> bool:
        """Whether everything that was due has exactly one row."""
        return self.expected == self.stored


def canned(due_at: datetime | None = None) -> Result:
    """Return a result as a runner elsewhere would publish it."""
    now = due_at or datetime.now(UTC)
    return Result(
        run_id=uuid4(),
        site=ELSEWHERE,
        trigger="manual",
        engine="noop",
        due_at=now,
        started_at=now,
        finished_at=now,
        status=Status.SUCCEEDED,
        measurement=Measurement(latency_s=0.01),
    )


class Ledger:
    """The schedules of one scenario, from `open` to `close`, and results that were published beside them."""

    def __init__(self, bus: Bus, database_url: str) -> None:
        self._bus, self._database_url = bus, database_url
        self._schedules: dict[str, Schedule] = {}
        self._closed_at: datetime | None = None
        self.published: set[UUID] = set()
        """The runs whose results were published besides."""

    async def open(
        self,
        *names: str,
        sites: Sequence[str] = ("home",),
        every_s: int = 1,
        catch_up: CatchUp = "all",
        since: datetime | None = None,
        **options: Any,
    ) -> None:
        """Create schedules of the engine noop; they are due from now on (or `since`), every second on the second."""
        for name in names:
            schedule = Schedule(
                name=name,
                engine="noop",
                sites=tuple(sites),
                timing=Interval(every_s=every_s, phase_s=0),
                options=options,
                catch_up=catch_up,
                active_since=since or datetime.now(UTC),
            )
            self._schedules[name] = schedule
            await self._bus.put(schedule)

    def schedule(self, name: str) -> Schedule:
        """Return one of the schedules."""
        return self._schedules[name]

    async def close(self) -> None:
        """Pause every schedule, half a second off the instants: which ones were due is then beyond doubt."""
        await asyncio.sleep((0.5 - time.time()) % 1)
        self._closed_at = datetime.now(UTC)
        for schedule in self._schedules.values():
            await self._bus.put(schedule.model_copy(update={"enabled": False}))

    @asynccontextmanager
    async def publishing(self, publishers: int = 4, every_s: float = 0.04) -> AsyncIterator[None]:
        """Publish results beside those of the schedules for the length of the block, each for as long as it takes."""
        enough = asyncio.Event()

        async def publish() -> None:
            while not enough.is_set():
                result = canned()
                subject = subjects.result(ELSEWHERE, None)
                await publish_until_stored(self._bus.js, subjects.RESULTS, subject, result.to_json(), str(result.run_id))
                self.published.add(result.run_id)
                await asyncio.sleep(every_s)  # as fast as it goes, the load would take the CPU from what it is to try

        async with asyncio.TaskGroup() as load:
            try:
                for _ in range(publishers):
                    load.create_task(publish())
                yield
            finally:
                enough.set()

    def expected(self) -> "Counter[Due]":
        """Return the instants between creation and pause, or until now, and the results that were published."""
        until = self._closed_at or datetime.now(UTC)
        due: Counter[Due] = Counter(self.published)
        for schedule in self._schedules.values():
            for site in schedule.sites:
                for instant in instants(schedule, site, schedule.active_since - timedelta(seconds=1)):
                    if instant > until:
                        break
                    due[schedule.name, site, instant] += 1
        return due

    async def account(self, deadline_s: float = SETTLED_WITHIN_S) -> Account:
        """Close, wait until each instant has its one row, and return the account; past the deadline, as it then is."""
        if self._closed_at is None:
            await self.close()
        end = time.monotonic() + deadline_s
        while True:
            account = await self.look()
            if account.is_even or time.monotonic() > end:
                break
            await asyncio.sleep(0.25)
        await asyncio.sleep(1)  # a row too many would still be on its way
        return await self.look()

    async def look(self) -> Account:
        """Return the account as it is now."""
        stored: Counter[Due] = Counter()
        statuses: Counter[str] = Counter()
        for row in await self._fetch("SELECT run_id, schedule, site, due_at, status FROM results"):
            stored[(row["schedule"], row["site"], row["due_at"]) if row["schedule"] else UUID(str(row["run_id"]))] += 1
            statuses[row["status"]] += 1
        return Account(self.expected() + self._undecided(stored), stored, statuses)

    def _undecided(self, stored: "Counter[Due]") -> "Counter[Due]":
        """Return what was due within a second after the pause and ran: schedulers take that long to see it."""
        closed_at = self._closed_at
        if closed_at is None:
            return Counter()
        late = {each for each in stored if isinstance(each, tuple) and closed_at < each[2] <= closed_at + timedelta(seconds=1)}
        return Counter(late)

    async def row_after(self, moment: datetime, within_s: float = 60, sites: Sequence[str] = ()) -> float:
        """Wait for the first row of a schedule recorded after a moment (at one of some sites); return how many seconds later."""
        return await self._first("recorded_at > $1", moment, within_s, sites)

    async def run_after(self, moment: datetime, within_s: float = 60, sites: Sequence[str] = (), schedule: str | None = None) -> float:
        """The same for the first run (of a schedule) that began after it: the whole way from tick to row works again."""
        return await self._first("started_at > $1", moment, within_s, sites, schedule)

    async def _first(self, condition: str, moment: datetime, within_s: float, sites: Sequence[str], schedule: str | None = None) -> float:
        anywhere, any_schedule = "($2::text[] = '{}' OR site = any($2))", "schedule = coalesce($3, schedule)"
        query = f"SELECT min(recorded_at) AS first FROM results WHERE {condition} AND {anywhere} AND {any_schedule}"
        end = time.monotonic() + within_s
        while True:
            (row,) = await self._fetch(query, moment, list(sites), schedule)
            if row["first"]:
                return float((row["first"] - moment).total_seconds())
            assert time.monotonic() < end, f"no row within {within_s} s after {moment}"
            await asyncio.sleep(0.05)

    async def flowing(self, rows: int = 5) -> None:
        """Wait until so many rows are there that were not: the system is warm and under load."""
        before = (await self._fetch("SELECT count(*) FROM results"))[0][0]
        end = time.monotonic() + 60
        while (await self._fetch("SELECT count(*) FROM results"))[0][0] < before + rows:
            assert time.monotonic() < end, "no rows come"
            await asyncio.sleep(0.05)

    async def _fetch(self, query: str, *values: Any) -> "list[asyncpg.Record]":
        """Ask with a connection of its own, for as long as it takes: the server may be what was killed."""
        end = time.monotonic() + 60
        while True:
            try:
                connection = await asyncpg.connect(self._database_url, timeout=5)
                try:
                    return await connection.fetch(query, *values, timeout=10)
                finally:
                    connection.terminate()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.1)
