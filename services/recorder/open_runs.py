"""All the SQL of the settler: how far it has come, which sites go on by themselves, and the runs that have no row so far."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shared.database import Connection
from shared.events import Trigger
from shared.ledger import Due

LOOKED_AT_ONCE = 5_000


@dataclass(frozen=True)
class OpenRun:
    """A run without a row."""

    run_id: UUID
    due_at: datetime
    site: str
    line: str | None
    schedule: str | None
    trigger: Trigger
    engine: str
    start_at: datetime
    is_certain: bool
    withdrawn: str | None
    """What became of its schedule before it was to start, so that nobody starts it; None for one that is to be run."""
    expires_at: datetime | None
    """Of its tick; None while none was seen."""
    tick_sequence: int | None
    tick_until: datetime | None
    """Until when its tick was in the stream at the least; None for a run that was asked for by hand."""
    is_watched: bool
    """It was looked for by then."""


_COLUMNS = ", ".join(OpenRun.__dataclass_fields__)


async def settled_until(connection: Connection, horizon: datetime) -> datetime:
    """Return up to which start everything was looked at. What lies beyond the horizon is taken back: the clock was set back."""
    until: datetime = await connection.fetchval(
        "UPDATE ledger_state SET settled_until = least(settled_until, $1), began_at = least(began_at, $1) RETURNING settled_until", horizon
    )
    return until


async def open_up(connection: Connection, found: Iterable[Due], until: datetime) -> None:
    """Note those that have no row as open, and that everything up to a start was looked at: in one transaction."""
    # the certain one of two stays, and of two of them the one that is run
    runs = {due.run_id: due for due in sorted(found, key=lambda each: (each.is_certain, each.withdrawn is None))}
    rows = [
        (
            due.due_at,
            run_id,
            due.site,
            due.schedule.line,
            due.schedule.name,
            due.schedule.engine,
            due.start_at,
            due.is_certain,
            due.withdrawn,
            due.remembered_until,
        )
        for run_id, due in runs.items()
    ]
    async with connection.transaction():
        if rows:
            await connection.execute(_OPEN, *map(list, zip(*rows, strict=True)))
        await connection.execute("UPDATE ledger_state SET settled_until = $1", until)


async def note_leaves(connection: Connection, sites: Collection[str]) -> None:
    """Note which sites have a NATS server of their own; those that had one before stay noted."""
    await connection.execute(
        "UPDATE ledger_state SET leaves = ARRAY(SELECT DISTINCT site FROM unnest(leaves || $1::text[]) AS site ORDER BY site) "
        "WHERE NOT leaves @> $1",
        sorted(sites),
    )


async def close(connection: Connection) -> None:
    """Forget those that have a row by now."""
    await connection.execute(
        "DELETE FROM open_runs USING results WHERE results.due_at = open_runs.due_at AND results.run_id = open_runs.run_id"
    )


async def to_look_at(connection: Connection, now: datetime) -> list[OpenRun]:
    """Return those that are to be looked at, at most LOOKED_AT_ONCE."""
    sql = f"SELECT {_COLUMNS} FROM open_runs WHERE look_at <= $1 ORDER BY look_at LIMIT {LOOKED_AT_ONCE}"  # noqa: S608 - names from here
    return [OpenRun(**row) for row in await connection.fetch(sql, now)]


async def look_again(connection: Connection, runs: Sequence[tuple[OpenRun, datetime]]) -> None:
    """Note what is known of these runs, and when to look again."""
    await connection.executemany(
        "UPDATE open_runs SET look_at = $3, expires_at = $4, tick_sequence = $5, line = $6, engine = $7, trigger = $8, is_watched = $9 "
        "WHERE due_at = $1 AND run_id = $2",
        [
            (run.due_at, run.run_id, at, run.expires_at, run.tick_sequence, run.line, run.engine, run.trigger, run.is_watched)
            for run, at in runs
        ],
    )


async def drop(connection: Connection, runs: Sequence[OpenRun]) -> None:
    """Forget runs that nobody has to account for."""
    await connection.executemany("DELETE FROM open_runs WHERE due_at = $1 AND run_id = $2", [(run.due_at, run.run_id) for run in runs])


async def count(connection: Connection) -> int:
    """Return how many are open."""
    number: int = await connection.fetchval("SELECT count(*) FROM open_runs")
    return number


_OPEN = """
INSERT INTO open_runs (due_at, run_id, site, line, schedule, engine, start_at, is_certain, withdrawn, tick_until, trigger, look_at)
SELECT given.*, 'schedule', clock_timestamp()
FROM unnest(
  $1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[],
  $7::timestamptz[], $8::boolean[], $9::text[], $10::timestamptz[]
) AS given (due_at, run_id, site, line, schedule, engine, start_at, is_certain, withdrawn, tick_until)
WHERE NOT EXISTS (SELECT FROM results WHERE results.due_at = given.due_at AND results.run_id = given.run_id)
ON CONFLICT (due_at, run_id) DO UPDATE SET is_certain = true, withdrawn = EXCLUDED.withdrawn
WHERE EXCLUDED.is_certain AND NOT open_runs.is_certain
"""
