"""The plans of the hot reads: none reads all of a month, and each leaves out the months that it cannot need."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.api import queries, summaries
from services.api.database import Database
from services.api.newest import EACH_TIME
from services.api.parameters import Newest, Origin, Wanted
from shared.settings import DatabaseSettings

T0 = datetime(2026, 9, 1, tzinfo=UTC)
NEW = T0 + timedelta(days=59)
MONTHS = ("results_2026_09", "results_2026_10")
EVERY = timedelta(seconds=40)
"""Two months of it are about 130,000 rows, of 50 sites."""


class Explained(Database):
    """The database of the API, which also keeps the plan of every statement."""

    def __init__(self, settings: DatabaseSettings) -> None:
        super().__init__(settings)
        self.plans: list[str] = []

    async def rows(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Return all rows of a query."""
        await self._explain(sql, *arguments)
        return await super().rows(sql, *arguments)

    async def row(self, sql: str, *arguments: Any) -> asyncpg.Record | None:
        """Return the first row of a query, or None."""
        await self._explain(sql, *arguments)
        return await super().row(sql, *arguments)

    async def _explain(self, sql: str, *arguments: Any) -> None:
        self.plans.append("\n".join(each[0] for each in await super().rows(f"EXPLAIN (COSTS false) {sql}", *arguments)))


@pytest.fixture
async def explained(database: "asyncpg.Connection[asyncpg.Record]", database_url: str) -> AsyncIterator[Explained]:
    """Give a database with two months of results."""
    for month in (T0, NEW):
        await database.execute("SELECT results_partition($1)", month)
    await database.execute(
        """INSERT INTO results (run_id, due_at, site, schedule, trigger, engine, status, attempt, finished_at, download_bps)
        SELECT gen_random_uuid(), due_at, 'site-' || n % 50, 'schedule-' || n % 50, 'schedule', 'noop', 'succeeded', 1, due_at, 1 + n
        FROM generate_series($1::timestamptz, $2, $3::interval) WITH ORDINALITY AS each (due_at, n)""",
        *(T0, NEW, EVERY),
    )
    # a month that was added up: hours and days of each site, and of all
    await database.execute("DELETE FROM stale_rollups WHERE since < $1", NEW - timedelta(days=20))
    await database.execute(
        """INSERT INTO result_rollups
        SELECT hours, since, 'site-' || site, 'schedule-' || site, CASE WHEN site >= 0 THEN 'noop' END, '{1,0,0,0}',
          ones, ones, ones, ARRAY[(result_bin(1, 1) << 32) + 1], '"counts":{},"metrics":{}'
        FROM (VALUES (1), (24)) AS size (hours)
        CROSS JOIN LATERAL generate_series($1::timestamptz, $2, hours * interval '1 hour') AS since
        CROSS JOIN (SELECT nullif(n, 50) AS site FROM generate_series(0, 50) AS n) AS sites
        CROSS JOIN (VALUES (array_fill(1.0::double precision, '{8}'))) AS one (ones)""",
        *(T0, NEW - timedelta(days=20)),
    )
    await database.execute("ANALYZE results, result_rollups, stale_rollups")
    opened = Explained(DatabaseSettings(database_url=database_url))
    async with opened.opened():
        yield opened


DEEP = queries._cursor({"due_at": T0 + timedelta(days=9), "run_id": UUID(int=7)})  # type: ignore[arg-type]
THREE_DAYS = Wanted.model_validate({"site": "site-7", "from": "2026-09-01T00:00:00Z", "to": "2026-09-04T00:00:00Z"})
MONTH = [T0 + hour * timedelta(hours=1) for hour in range(30 * 24 + 1)]
DAYS = [T0 + timedelta(hours=6) + day * timedelta(days=1) for day in range(29)]
HOURS = [NEW - timedelta(days=7) + hour * timedelta(hours=1) for hour in range(7 * 24 + 1)]
READS: dict[str, tuple[Callable[[Database], Awaitable[object]], tuple[str, ...]]] = {
    # which months it may read; the newest come first, so that it ends before it comes to the older
    "the latest": (lambda each: queries.page(each, Origin(), 100, None), MONTHS),
    "the latest of a site": (lambda each: queries.page(each, Origin(site="site-7"), 100, None), MONTHS),
    "the latest of a site and engine": (lambda each: queries.page(each, Origin(site="site-7", engine="noop"), 100, None), MONTHS),
    "the latest of a schedule": (lambda each: queries.page(each, Origin(schedule="schedule-7"), 100, None), MONTHS),
    "a period of a site": (
        lambda each: queries.page(each, THREE_DAYS, 100, None),
        MONTHS[:1],
    ),
    "a page deep in the past": (lambda each: queries.page(each, Origin(schedule="schedule-7"), 100, DEEP), MONTHS[:1]),
    "the newest": (lambda each: queries.newest(each, Newest(site="site-7")), MONTHS),
    "one run": (lambda each: queries.one(each, UUID(int=7)), MONTHS),
    "the page": (lambda each: queries.newest_flat(each, "download_bps"), MONTHS),
    "the metrics": (lambda each: each.rows(queries.NEWEST, EACH_TIME), MONTHS),
    "a week of a schedule by the hour": (lambda each: summaries.summary(each, Origin(schedule="schedule-7"), HOURS), MONTHS[1:]),
    "a month of a schedule by the hour": (lambda each: summaries.summary(each, Origin(schedule="schedule-7"), MONTH), MONTHS[:1]),
    "a month of a site by days of another zone": (lambda each: summaries.summary(each, Origin(site="site-7"), DAYS), MONTHS[:1]),
    "a month of all by the hour": (lambda each: summaries.summary(each, Origin(), MONTH), MONTHS[:1]),
    "a month of all in one": (lambda each: summaries.summary(each, Origin(), MONTH[:: 30 * 24]), MONTHS[:1]),
}


async def test_a_hot_read_reads_by_an_index(explained: Explained) -> None:
    """Each of them, as the planner chooses for a table of this size; and a month that cannot have the rows is not looked at."""
    for name, (read, months) in READS.items():
        explained.plans.clear()
        await read(explained)
        assert explained.plans, name
        for plan in explained.plans:
            assert "Seq Scan on result" not in plan, f"{name}:\n{plan}"
            assert "Index" in plan, f"{name}:\n{plan}"
            assert not re.search(r"Filter: \(+(site|schedule|run_id) =", plan), f"{name} reads others' rows, too:\n{plan}"
            # the key begins with the time: by the run alone all of it is read
            assert not re.search(r"_pkey on .*\n *Index Cond: \(run_id =", plan), f"{name} reads all of the key:\n{plan}"
            assert {month for month in MONTHS if month in plan} == set(months), f"{name}:\n{plan}"
