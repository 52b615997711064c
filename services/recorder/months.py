"""The months that results are kept in: the next one is made before a row needs it, those that are too old are dropped."""

import asyncio
import logging
from datetime import UTC, date, datetime, timedelta

import asyncpg

from services.recorder.metrics import Metrics
from services.recorder.settler import alone
from shared.connect import NATS_AWAY
from shared.database import Connection, lent

log = logging.getLogger(__name__)

EVERY_S = 3_600.0
AGAIN_S = 60.0
"""How soon it looks again after a month was in use, or Postgres away."""
SOON_S = 1.0
"""How soon after a recorder looked for gaps, which it does for a moment at a time."""

# Either takes the table of results for itself for a moment: rather than have all others wait behind it for a long reader, it gives up.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"


async def watch(pool: "asyncpg.Pool[asyncpg.Record]", metrics: Metrics, retention: timedelta | None) -> None:
    """Make and drop months, for ever; what cannot be done now is tried again."""
    while True:
        wait = EVERY_S
        try:
            async with lent(pool) as connection:
                now = datetime.now(UTC)
                await make_ahead(connection, now.date())
                metrics.is_month_ahead.set(1)
                if retention:
                    dropped = await drop_before(connection, now - retention)
                    metrics.months_dropped.inc(dropped or 0)
                    wait = SOON_S if dropped is None else EVERY_S
        except (asyncpg.PostgresError, asyncpg.InterfaceError, *NATS_AWAY) as error:
            log.warning("the months of the results cannot be looked after now", extra={"error": str(error) or type(error).__name__})
            wait = AGAIN_S
        await asyncio.sleep(wait)


async def make_ahead(connection: Connection, today: date) -> None:
    """Make the partitions of this month and the next, where they are not there.

    Raises: asyncpg.LockNotAvailableError while the results are in use, asyncpg.PostgresError.
    """
    this = today.replace(day=1)
    for month in (this, (this + timedelta(days=31)).replace(day=1)):
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute("SELECT results_partition($1)", month)


async def drop_before(connection: Connection, moment: datetime) -> int | None:
    """Drop the months that ended before a moment, each in a transaction of its own, and return how many those were.

    The ledger begins after them from then on. Nothing is done while a recorder looks for gaps, which reads both: None.
    Raises: asyncpg.LockNotAvailableError while the results are in use, asyncpg.PostgresError.
    """
    dropped = 0
    async with alone(connection) as is_alone:
        if not is_alone:
            return None
        while (left := await connection.fetchval("SELECT results_drop($1)", moment)) is not None:
            dropped += 1
            log.info("a month of results was dropped: it is older than what is kept", extra={"left": left})
            if not left:
                break
    return dropped
