"""Does every instant that was due have exactly one row? Worked out anew from what was asked for, and held against the rows.

The instants follow from the history of the schedules (shared/ledger.py); nothing that the recorder counted on the way is
believed, but for what it still waits for.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from uuid import UUID

import asyncpg

from shared import history, ledger
from shared.database import Connection
from shared.errors import TooMuch
from shared.events import run_id_of
from shared.ledger import Due, Span

SHOWN = 100
"""So many of each kind are told one by one."""
LATE = timedelta(seconds=60)
"""How long after the last moment at which a run could start its row may come."""
PIECE = 5_000
ROWS_AT_ONCE = 10_000
_YIELD_EVERY = 500

Key = tuple[datetime, UUID]


@dataclass(frozen=True)
class Run:
    """A run that something is wrong with."""

    run_id: UUID
    due_at: datetime
    site: str
    schedule: str | None
    trigger: str


@dataclass
class Found:
    """How many runs there are of a kind, and the first of them."""

    count: int = 0
    first: list[Run] = field(default_factory=list)

    def add(self, run: Run) -> None:
        """Count a run."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(run)


@dataclass
class Audit:
    """What was found in a period."""

    since: datetime
    until: datetime
    due: int = 0
    """Instants that were due and runs that were asked for."""
    rows: int = 0
    open: int = 0
    """Due without a row, where one may still come."""
    missing: Found = field(default_factory=Found)
    """Due without a row, and nobody waits for one."""
    duplicated: Found = field(default_factory=Found)
    """Rows beside the one that an instant or a run has."""
    unexpected: Found = field(default_factory=Found)
    """Rows of what nobody asked for."""

    @property
    def is_clean(self) -> bool:
        """Whether every instant has exactly one row, and every row an instant."""
        return not (self.missing.count or self.duplicated.count or self.unexpected.count)


@dataclass(frozen=True)
class _Wanted:
    """What is looked at."""

    connection: Connection
    now: datetime
    site: str | None
    schedule: str | None
    judged_until: datetime
    """Later rows may be of a schedule or a run that is not written down yet."""
    known_since: dict[str, datetime]
    """For each schedule, from when on its versions are known."""
    spans: dict[str, list[Span]]
    """By the names of the schedules."""
    leaves: frozenset[str]
    """The sites with a NATS server of their own."""


async def audit(
    connection: Connection,
    since: datetime,
    until: datetime,
    *,
    now: datetime,
    site: str | None = None,
    schedule: str | None = None,
    at_most: int | None = None,
) -> Audit:
    """Hold the rows of what was due in [since, until) against what was to be; the future and what was before the ledger are left out.

    Raises: TooMuch when more than `at_most` instants were due, asyncpg.PostgresError.
    """
    state = await connection.fetchrow("SELECT began_at, settled_until, leaves FROM ledger_state")
    began_at, settled_until, leaves = (state["began_at"], state["settled_until"], state["leaves"]) if state else (now, now, ())
    found = Audit(max(since, began_at), max(min(until, now), since, began_at))
    versions = await history.versions(connection)
    known_since: dict[str, datetime] = {}
    for version in versions:
        known_since[version.name] = min(known_since.get(version.name, version.since), version.since)
    spans = [span for span in ledger.spans(versions) if schedule in {None, span.schedule.name}]
    by_name: dict[str, list[Span]] = {}
    for span in spans:
        by_name.setdefault(span.schedule.name, []).append(span)
    wanted = _Wanted(connection, now, site, schedule, settled_until, known_since, by_name, frozenset(leaves))
    async for start, end, instants in _pieces(spans, found.since, found.until, site):
        await _compare(wanted, found, start, end, instants)
        if at_most is not None and found.due > at_most:
            raise TooMuch(f"more than {at_most:,} runs were due")
    return found


async def _pieces(
    spans: Sequence[Span], since: datetime, until: datetime, site: str | None
) -> AsyncIterator[tuple[datetime, datetime, dict[Key, Due]]]:
    """Yield pieces of the period with the instants in them, which are in none or few of them: an instant is never divided."""
    start, instants = since, dict[Key, Due]()
    for due_at, group in groupby(_of_site(ledger.between(spans, since, until), site), key=lambda due: due.due_at):
        if len(instants) >= PIECE:
            yield start, due_at, instants
            start, instants = due_at, {}
        for number, due in enumerate(group):
            key = (due_at, due.run_id)
            if key not in instants or due.is_certain:
                instants[key] = due
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
    yield start, until, instants


def _of_site(instants: Iterator[Due], site: str | None) -> Iterator[Due]:
    return (due for due in instants if site in {None, due.site})


async def _compare(wanted: _Wanted, found: Audit, start: datetime, end: datetime, instants: dict[Key, Due]) -> None:
    """Compare what was due in [start, end) with its rows."""
    asked = {(row["due_at"], row["run_id"]): row for row in await _select(wanted, _ASKED, start, end)}
    found.due += len(asked) + sum(due.is_certain for due in instants.values())
    seen: set[Key] = set()
    async for rows in _rows(wanted, start, end):
        found.rows += len(rows)
        strangers = [row for row in rows if (row["due_at"], row["run_id"]) not in instants and (row["due_at"], row["run_id"]) not in asked]
        seen.update((row["due_at"], row["run_id"]) for row in rows)
        await _sort(wanted, found, [row for row in strangers if _is_judged(wanted, row)], instants)
    without = [due for key, due in instants.items() if due.is_certain and key not in seen]
    late = [row for key, row in asked.items() if key not in seen]
    if not without and not late:
        return
    open_runs = {(row["due_at"], row["run_id"]): row["look_at"] for row in await _select(wanted, _OPEN, start, end)}
    for due in without:
        run = Run(due.run_id, due.due_at, due.site, due.schedule.name, "schedule")
        _count(wanted, found, run, open_runs.get((due.due_at, run.run_id)) or due.expires_at)
    for row in late:
        run = _run(row, "manual")
        _count(wanted, found, run, open_runs.get((run.due_at, run.run_id)) or row["expires_at"])


def _count(wanted: _Wanted, found: Audit, run: Run, awaited_until: datetime) -> None:
    if awaited_until + LATE >= wanted.now:
        found.open += 1
    else:
        found.missing.add(run)


def _is_judged(wanted: _Wanted, row: asyncpg.Record) -> bool:
    """Return whether all is known that could have asked for a row."""
    if row["due_at"] > wanted.judged_until:
        return False
    known_since = wanted.known_since.get(row["schedule"]) if row["trigger"] != "manual" else None
    return known_since is None or row["due_at"] >= known_since


async def _sort(wanted: _Wanted, found: Audit, strangers: Sequence[asyncpg.Record], instants: dict[Key, Due]) -> None:
    """Tell the rows that stand beside another one of their instant or run from those that nobody asked for."""
    if not strangers:
        return
    twice = {row["run_id"] for row in await wanted.connection.fetch(_TWICE, [row["run_id"] for row in strangers])}
    for number, row in enumerate(strangers, 1):
        run = _run(row, row["trigger"])
        run_id = run_id_of(run.schedule, run.site, run.due_at) if run.schedule and run.trigger != "manual" else None
        if (run.due_at, run_id) in instants or run.run_id in twice:
            found.duplicated.add(run)
        elif run.run_id != run_id or not _is_by_a_copy(wanted, run):
            found.unexpected.add(run)
        if number % _YIELD_EVERY == 0:
            await asyncio.sleep(0)


def _is_by_a_copy(wanted: _Wanted, run: Run) -> bool:
    """Return whether a site that may be cut off can have gone by an older version of a schedule."""
    return run.site in wanted.leaves and ledger.was_an_instant(wanted.spans.get(run.schedule or "", ()), run.site, run.due_at)


def _run(row: asyncpg.Record, trigger: str) -> Run:
    return Run(row["run_id"], row["due_at"], row["site"], row["schedule"], trigger)


async def _rows(wanted: _Wanted, start: datetime, end: datetime) -> AsyncIterator[list[asyncpg.Record]]:
    after = UUID(int=0)
    while True:
        rows = await _select(wanted, _ROWS, start, end, after)
        yield rows
        if len(rows) < ROWS_AT_ONCE:
            return
        start, after = rows[-1]["due_at"], rows[-1]["run_id"]


async def _select(wanted: _Wanted, sql: str, start: datetime, end: datetime, *more: object) -> list[asyncpg.Record]:
    return await wanted.connection.fetch(sql, start, end, wanted.site, wanted.schedule, *more)


_THESE = "due_at >= $1 AND due_at < $2 AND ($3::text IS NULL OR site = $3) AND ($4::text IS NULL OR schedule = $4)"
_ROWS = f"""
SELECT run_id, due_at, site, schedule, trigger FROM results WHERE {_THESE} AND (due_at, run_id) > ($1, $5)
ORDER BY due_at, run_id LIMIT {ROWS_AT_ONCE}
"""  # noqa: S608 - conditions from here
_ASKED = f"SELECT run_id, due_at, expires_at, site, schedule FROM asked_runs WHERE {_THESE}"  # noqa: S608 - as above
_OPEN = f"SELECT due_at, run_id, look_at FROM open_runs WHERE {_THESE}"  # noqa: S608 - as above
_TWICE = "SELECT run_id FROM results WHERE run_id = ANY($1) GROUP BY run_id HAVING count(*) > 1"
