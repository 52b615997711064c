"""Results added up by hour and by day, once those are over: what writes a result only marks its hour and day."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import asyncpg

from shared.connect import NATS_AWAY
from shared.database import Connection, lent

log = logging.getLogger(__name__)

EVERY_S = 60.0
LATE = timedelta(minutes=5)
"""How long after an hour its last results are waited for: later ones cost adding it up once more, and are never wrong."""
AT_ONCE = 8
"""In one transaction: a late result of one of those hours waits for its end."""
LONGEST_S = 1_800.0
"""For a day of a large fleet."""


async def watch(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    """Add up what is over, for ever; what cannot be done now is tried again."""
    while True:
        try:
            async with lent(pool) as connection:
                await add_up(connection, datetime.now(UTC) - LATE)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, *NATS_AWAY) as error:
            log.warning("results cannot be added up now", extra={"error": str(error) or type(error).__name__})
        await asyncio.sleep(EVERY_S)


async def add_up(connection: Connection, until: datetime) -> int:
    """Add up the marked hours and days that ended before a moment, and return how many those were.

    Raises: asyncpg.PostgresError.
    """
    done = 0
    while folded := await connection.fetchval("SELECT results_fold($1, $2)", until, AT_ONCE, timeout=LONGEST_S):
        done += folded
    if done:
        log.info("results were added up by hour and day", extra={"rollups": done})
    return done
