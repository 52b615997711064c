"""The SQL of recording: one statement that stores many results, each once, in the partitions of their months."""

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from shared.database import Connection
from shared.events import Client, Measurement, Result, Server

REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,  # asyncpg cannot encode a value; its client-side error is one of these
    OverflowError,
    RecursionError,
)
"""What says that a value cannot be stored, now or ever. Nothing else makes a dead letter."""

_MEASURED = {
    "download_bps": "double precision",
    "upload_bps": "double precision",
    "latency_s": "double precision",
    "jitter_s": "double precision",
    "packet_loss": "double precision",
    "download_latency_s": "double precision",
    "upload_latency_s": "double precision",
    "responsiveness_rpm": "double precision",
    "bufferbloat_grade": "text",
    "download_spread": "double precision",
    "upload_spread": "double precision",
    "limited_by": "text",
    "confidence": "text",
    "download_bytes": "bigint",
    "upload_bytes": "bigint",
}
_PLACES = {"latitude": "double precision", "longitude": "double precision", "distance_m": "double precision"}
COLUMNS = {
    "run_id": "uuid",
    "due_at": "timestamptz",
    "site": "text",
    "schedule": "text",
    "trigger": "text",
    "engine": "text",
    "engine_version": "text",
    "status": "text",
    "runner": "text",
    "attempt": "integer",
    "line": "text",
    "fallback_for": "text",
    "start_at": "timestamptz",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    **_MEASURED,
    **{f"server_{name}": _PLACES.get(name, "text") for name in Server.model_fields},
    **{f"client_{name}": _PLACES.get(name, "text") for name in Client.model_fields},
    "failure_kind": "text",
    "failure_message": "text",
    "details": "jsonb",
    "log": "text",
}
"""The columns that a result fills, with their types, in the order of `row`."""

_GIVEN = f"unnest({', '.join(f'${number}::{kind}[]' for number, kind in enumerate(COLUMNS.values(), 1))}) AS given ({', '.join(COLUMNS)})"
_INTO, _NEW = f"INSERT INTO results ({', '.join(COLUMNS)})", "ON CONFLICT DO NOTHING RETURNING due_at, run_id"
INSERT = f"{_INTO} SELECT * FROM {_GIVEN} {_NEW}"  # noqa: S608 - names from this module, values as parameters
_INSERT_ONE = f"{_INTO} VALUES ({', '.join(f'${number}' for number in range(1, len(COLUMNS) + 1))}) {_NEW}"
"""The same for one result, as which most come: taking so many arrays apart to get one row costs a fraction of a millisecond."""
_OTHERS = [name for name in COLUMNS if name not in {"due_at", "run_id"}]
# Not as part of the INSERT (ON CONFLICT DO UPDATE): to name what it would have inserted takes the right to read all of it.
_REPLACE = f"""
UPDATE results SET ({", ".join(_OTHERS)}, recorded_at) = ROW({", ".join(f"given.{name}" for name in _OTHERS)}, clock_timestamp())
FROM {_GIVEN}
WHERE results.due_at = given.due_at AND results.run_id = given.run_id
AND results.started_at IS NULL AND (given.started_at IS NOT NULL OR results.runner IS NULL AND given.runner IS NOT NULL)
RETURNING results.run_id
"""  # noqa: S608 - as above
_NOTHING = Measurement()
_OF_RUN = attrgetter(*list(COLUMNS)[: list(COLUMNS).index("finished_at") + 1])
_OF_MEASUREMENT = attrgetter(
    *_MEASURED, *(f"server.{name}" for name in Server.model_fields), *(f"client.{name}" for name in Client.model_fields)
)
_JSON = json.JSONEncoder(allow_nan=False).encode

COPIED_FROM = 20
"""So many results are written by COPY: for fewer its further round trip costs more than it saves."""

T = TypeVar("T")


async def record(connection: Connection, results: Sequence[Result]) -> int:
    """Store results that are most likely new, as `insert` does, a large batch by COPY.

    COPY takes less of the server's time than an INSERT, but refuses all rows for one that is there already, also twice in the
    batch: `insert` has them then.
    Raises: as `insert`.
    """
    if len(results) < COPIED_FROM:
        return await insert(connection, results)
    rows = list(map(row, sorted(results, key=_key)))
    try:
        await _in_months(connection, results, lambda: connection.copy_records_to_table("results", records=rows, columns=COLUMNS))
    except asyncpg.UniqueViolationError:
        return await insert(connection, results)
    return len(results)


async def insert(connection: Connection, results: Sequence[Result]) -> int:
    """Store results and return how many changed something; missing partitions are made before.

    A result already stored is a redelivery, not an error: the primary key drops it. Only one of more weight takes the place of
    the one that is there: what a runner says beats what was guessed without one, and a run that started beats both.
    Raises: one of REFUSED for a value that cannot be stored, asyncpg.PostgresError or OSError when the server does not
    take it now; storing them all again does no harm then.
    """
    # one of each run, for a statement changes no row twice: the first of those with the most weight
    chosen: dict[tuple[datetime, UUID], Result] = {}
    for result in results:
        known = chosen.setdefault((result.due_at, result.run_id), result)
        if _weight(result) > _weight(known):
            chosen[result.due_at, result.run_id] = result
    ordered = sorted(chosen.values(), key=_key)
    statement, given = (_INSERT_ONE, row(ordered[0])) if len(ordered) == 1 else (INSERT, columns(ordered))
    added = await _in_months(connection, ordered, lambda: connection.fetch(statement, *given))
    new = {(each["due_at"], each["run_id"]) for each in added}
    late = [result for result in ordered if _weight(result) and (result.due_at, result.run_id) not in new]
    replaced = await connection.fetch(_REPLACE, *columns(late)) if late else []
    return len(new) + len(replaced)


async def _in_months(connection: Connection, results: Sequence[Result], work: Callable[[], Awaitable[T]]) -> T:
    """Store results, and where a month of theirs has no partition so far, make it and store them again."""
    try:
        return await work()
    except asyncpg.CheckViolationError:  # also what a rule of the table refuses: it does so again
        for month in sorted({_month_of(result) for result in results}):
            await connection.execute("SELECT results_partition($1)", month)
        return await work()


def _key(result: Result) -> tuple[float, int]:
    """Return where a result comes in the order of the primary key.

    Two that store the same results, in whatever order they came, would wait for each other otherwise.
    """
    return result.due_at.timestamp(), result.run_id.int


def _weight(result: Result) -> int:
    return 2 if result.started_at is not None else 1 if result.runner is not None else 0


def columns(results: Sequence[Result]) -> list[tuple[Any, ...]]:
    """Return what INSERT takes: the values of each column."""
    return list(zip(*map(row, results), strict=True))


def _month_of(result: Result) -> date:
    """Return the first day of the month (UTC) in which a run was due."""
    return result.due_at.astimezone(UTC).date().replace(day=1)


def row(result: Result) -> tuple[Any, ...]:
    """Return the values of COLUMNS."""
    measurement, failure = result.measurement or _NOTHING, result.failure
    return (
        *_OF_RUN(result),
        *_OF_MEASUREMENT(measurement),
        *((failure.kind, failure.message) if failure else (None, None)),
        _JSON(measurement.details),
        result.log,
    )
