"""The database: reachable, its schema up to date, its tables there, its clock right."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from services.cli import postgres, target
from services.cli.checks import Finding, reason
from shared.errors import RefresherError
from shared.migrate import pending
from shared.settings import without_password

if TYPE_CHECKING:
    import asyncpg

TABLES = (
    "results",
    "schedule_versions",
    "asked_runs",
    "open_runs",
    "ledger_state",
    "result_rollups",
    "stale_rollups",
    "refresher_migrations",
)
TOLERANCE_S = 2.0


async def check() -> AsyncIterator[Finding]:
    """Yield what is found about the database."""
    try:
        async with postgres.connection() as connection:
            yield await _server(connection)
            yield await _migrations(connection)
            for table in TABLES:
                yield await _table(connection, table)
            yield await _clock(connection)
    except RefresherError as error:
        advice = "start it (`refresher up` brings its own), or set REFRESHER_DATABASE_URL to where it runs"
        yield Finding("postgres", "failed", reason(error), advice)


async def _server(connection: "asyncpg.Connection[asyncpg.Record]") -> Finding:
    version = await connection.fetchval("SHOW server_version")
    return Finding("postgres", "ok", f"version {version} at {without_password(target.database_url())}")


async def _migrations(connection: "asyncpg.Connection[asyncpg.Record]") -> Finding:
    if waiting := await pending(connection):
        return Finding("migrations", "failed", f"not applied: {', '.join(waiting)}", "run `refresher migrate`")
    return Finding("migrations", "ok", "all applied")


async def _table(connection: "asyncpg.Connection[asyncpg.Record]", table: str) -> Finding:
    name = f"table {table}"
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
        return Finding(
            name, "failed", "is not there", "run `refresher migrate`; if that applies nothing, restore the database from a backup"
        )
    if table != "results":
        return Finding(name, "ok", "is there")
    newest = await connection.fetchval("SELECT due_at FROM results ORDER BY due_at DESC LIMIT 1")
    return Finding(name, "ok", f"newest result due at {newest:%Y-%m-%d %H:%M:%S} UTC" if newest else "is there, no result yet")


async def _clock(connection: "asyncpg.Connection[asyncpg.Record]") -> Finding:
    before = datetime.now(UTC)
    theirs = await connection.fetchval("SELECT clock_timestamp()")
    after = datetime.now(UTC)
    apart_s = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0)
    if apart_s > TOLERANCE_S:
        advice = "set the clocks by NTP: times of runs and rows will not agree"
        return Finding("clocks", "warning", f"this machine and PostgreSQL are {apart_s:.1f} s apart", advice)
    return Finding("clocks", "ok", "this machine and PostgreSQL agree")
