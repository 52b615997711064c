"""The history of the schedules, as the recorder wrote it into the database."""

import logging

import asyncpg
from pydantic import ValidationError

from shared.database import Connection
from shared.ledger import Version
from shared.schedules import HISTORY, Schedule

log = logging.getLogger(__name__)


async def versions(connection: Connection, after: int = 0) -> list[Version]:
    """Return all versions of all schedules that came after the one of this number, in order.

    Raises: asyncpg.PostgresError.
    """
    sql = "SELECT number, name, since, spec FROM schedule_versions WHERE number > $1 ORDER BY number"
    return [_version(row) for row in await connection.fetch(sql, after)]


def spec(schedule: Schedule) -> str:
    """Return what is kept of a schedule: without what its engines are given, which is theirs alone and may hold secrets."""
    return schedule.model_dump_json(exclude={"options", "fallback"})


def _version(row: asyncpg.Record) -> Version:
    schedule = None
    if row["spec"] is not None:
        try:
            schedule = Schedule.model_validate_json(row["spec"], context=HISTORY)
        except ValidationError as error:  # a version of Refresher to come wrote it
            log.warning(
                "a version of a schedule cannot be read", extra={"schedule": row["name"], "number": row["number"], "error": str(error)}
            )
    return Version(row["number"], row["name"], row["since"], schedule)
