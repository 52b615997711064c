"""The SQL of recording: one statement that stores many results, each once, in the partitions of their months."""

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import asyncpg

from shared.connect import Connection
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
"""The columns that a result fills, with their types, in the order of `_row`."""

_GIVEN = f"unnest({', '.join(f'${number}::{kind}[]' for number, kind in enumerate(COLUMNS.values(), 1))}) AS given ({', '.join(COLUMNS)})"
_INSERT = f"""
INSERT INTO results ({", ".join(COLUMNS)}) SELECT * FROM {_GIVEN}
ON CONFLICT DO NOTHING
RETURNING due_at, run_id
"""  # noqa: S608 - names from this module, values as parameters
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


async def insert(connection: Connection, results: Sequence[Result]) -> int:
    """Store results and return how many changed something; missing partitions are made before.

    A result already stored is a redelivery, not an error: the primary key drops it. Only one of more weight takes the place of
    the one that is there: what a runner says beats what was guessed without one, and a run that started beats both.
    Raises: one of REFUSED for a value that cannot be stored, asyncpg.PostgresError or OSError when the server does not
    take it now; storing them all again does no harm then.
    """
    for month in sorted({_month_of(result) for result in results}):
        await connection.execute("SELECT results_partition($1)", month)
    # one of each run, for a statement changes no row twice: the first of those with the most weight
    chosen: dict[tuple[datetime, UUID], Result] = {}
    for result in results:
        known = chosen.setdefault((result.due_at, result.run_id), result)
        if _weight(result) > _weight(known):
            chosen[result.due_at, result.run_id] = result
    # in the order of the key: two that store the same results, in whatever order they came, would wait for each other
    ordered = sorted(chosen.values(), key=lambda result: (result.due_at, result.run_id))
    new = {(row["due_at"], row["run_id"]) for row in await connection.fetch(_INSERT, *_columns(ordered))}
    late = [result for result in ordered if _weight(result) and (result.due_at, result.run_id) not in new]
    replaced = await connection.fetch(_REPLACE, *_columns(late)) if late else []
    return len(new) + len(replaced)


def _weight(result: Result) -> int:
    return 2 if result.started_at is not None else 1 if result.runner is not None else 0


def _columns(results: Sequence[Result]) -> list[tuple[Any, ...]]:
    return list(zip(*map(_row, results), strict=True))


def _month_of(result: Result) -> date:
    """Return the first day of the month (UTC) in which a run was due."""
    return result.due_at.astimezone(UTC).date().replace(day=1)


def _row(result: Result) -> tuple[Any, ...]:
    measurement, failure = result.measurement or _NOTHING, result.failure
    return (
        *(result.run_id, result.due_at, result.site, result.schedule, result.trigger, result.engine, result.engine_version),
        *(str(result.status), result.runner, result.attempt, result.line, result.fallback_for),
        *(result.start_at, result.started_at, result.finished_at),
        *(getattr(measurement, name) for name in _MEASURED),
        *(getattr(measurement.server, name) for name in Server.model_fields),
        *(getattr(measurement.client, name) for name in Client.model_fields),
        failure.kind if failure else None,
        failure.message if failure else None,
        json.dumps(measurement.details, allow_nan=False),
        result.log,
    )
