"""Audits the last day, again and again: what `refresher audit` tells a person, told to Prometheus."""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

import asyncpg

from services.recorder.metrics import Metrics
from shared.audit import audit
from shared.connect import NATS_AWAY
from shared.database import lent

log = logging.getLogger(__name__)

PERIOD = timedelta(days=1)
SHARE = 20
"""It rests for so many times as long as it took, so that a large fleet does not keep a recorder busy."""


async def watch(pool: "asyncpg.Pool[asyncpg.Record]", metrics: Metrics, every_s: float) -> None:
    """Audit, for ever; while Postgres is away, it waits."""
    while True:
        started = time.monotonic()
        now = datetime.now(UTC)
        try:
            async with lent(pool) as connection:
                found = await audit(connection, now - PERIOD, now, now=now)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, *NATS_AWAY) as error:
            log.warning("the last day cannot be audited now", extra={"error": str(error) or type(error).__name__})
        else:
            counts = {kind: getattr(found, kind).count for kind in ("missing", "duplicated", "unexpected")}
            for kind, count in counts.items():
                metrics.audited[kind].set(count)
            if not found.is_clean:
                log.warning("the audit found runs without exactly one row: refresher audit lists them", extra=counts)
        await asyncio.sleep(max(every_s, SHARE * (time.monotonic() - started)))
