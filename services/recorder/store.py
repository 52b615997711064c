"""All the SQL of the recorder: one statement that stores many results, each once."""

import json
from collections.abc import Sequence
from datetime import UTC, date
from typing import Any

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

_NUMBERS = {
    "download_bps": "double precision",
    "upload_bps": "double precision",
    "latency_s": "double precision",
    "jitter_s": "double precision",
    "packet_loss": "double precision",
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
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    **_NUMBERS,
    **{f"server_{name}": _PLACES.get(name, "text") for name in Server.model_fields},
    **{f"client_{name}": _PLACES.get(name, "text") for name in Client.model_fields},
    "failure_kind": "text",
    "failure_message": "text",
    "details": "jsonb",
    "log": "text",
}
"""The columns that a result fills, with their types, in the order of `_row`."""

_INSERT = f"""
INSERT INTO results ({", ".join(COLUMNS)})
SELECT * FROM unnest({", ".join(f"${number}::{kind}[]" for number, kind in enumerate(COLUMNS.values(), 1))})
ON CONFLICT DO NOTHING
RETURNING run_id
"""  # noqa: S608 - names from this module, values as parameters
_NOTHING = Measurement()


async def insert(connection: Connection, results: Sequence[Result]) -> int:
    """Store results, all or none (it is one statement), and return how many were new.

    A result already stored is a redelivery, not an error: the primary key drops it.
    Raises: one of REFUSED for a value that cannot be stored, asyncpg.PostgresError or OSError when the server does not
    take it now; nothing is stored then.
    """
    columns = list(zip(*map(_row, results), strict=True))
    return len(await connection.fetch(_INSERT, *columns))


async def add_partitions(connection: Connection, months: set[date]) -> None:
    """Make the partitions of these months (their first days, UTC) where they are missing."""
    for month in sorted(months):
        await connection.execute("SELECT results_partition($1)", month)


def month_of(result: Result) -> date:
    """Return the first day of the month (UTC) in which a run was due."""
    return result.due_at.astimezone(UTC).date().replace(day=1)


def _row(result: Result) -> tuple[Any, ...]:
    measurement, failure = result.measurement or _NOTHING, result.failure
    return (
        *(result.run_id, result.due_at, result.site, result.schedule, result.trigger, result.engine, result.engine_version),
        *(str(result.status), result.runner, result.attempt, result.started_at, result.finished_at),
        *(getattr(measurement, name) for name in _NUMBERS),
        *(getattr(measurement.server, name) for name in Server.model_fields),
        *(getattr(measurement.client, name) for name in Client.model_fields),
        failure.kind if failure else None,
        failure.message if failure else None,
        json.dumps(measurement.details, allow_nan=False),
        result.log,
    )
