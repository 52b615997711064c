"""The rows in a backup: as COPY writes and reads them, so that no client program of the server's version is needed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

from services.cli.archive import Backup, Pieces, Writer
from shared.errors import ConfigurationError
from shared.migrate import alone, applied, available, migrate

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

LEDGER = ("schedule_versions", "asked_runs", "open_runs", "ledger_state")
"""What the results are held against: it comes and goes with them, and a recorder that was started before them has filled it."""
MARKS = "stale_rollups"
"""What the rollups do not have yet: to load the results marks all of them, and then comes what was saved."""
TABLES = ("results", *LEDGER, "result_rollups", MARKS)
"""Every table but the ledger of migrations, which is in the manifest."""

# text that reads the same on every server, whatever it is set to; and as much time as it takes
_PLAIN = "SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; SET extra_float_digits = 1; SET statement_timeout = 0"
_COLUMNS = """
SELECT attname FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attnum
"""


async def save(connection: "Connection", writer: Writer) -> dict[str, Any]:
    """Write all rows, of one moment, and return what the manifest says of them.

    Raises: ConfigurationError when there is no schema, or one of a newer version.
    """
    await connection.execute(_PLAIN)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        migrations = await applied(connection)
        if not migrations:
            raise ConfigurationError("there is nothing to save: this database has never been used by Refresher.")
        tables = {table: await _save(connection, table, writer) for table in TABLES}
        months = await connection.fetch("SELECT DISTINCT date_trunc('month', due_at)::date AS month FROM results ORDER BY month")
    return {"migrations": migrations, "tables": tables, "months": [each["month"].isoformat() for each in months]}


async def _save(connection: "Connection", table: str, writer: Writer) -> dict[str, Any]:
    columns = [row["attname"] for row in await connection.fetch(_COLUMNS, table)]
    pieces = Pieces(writer, table)
    query = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names from here and from the catalogue
    done = await connection.copy_from_query(query, output=pieces.take)
    pieces.flush()
    return {"columns": columns, "rows": _count(done)}


@asynccontextmanager
async def loaded(connection: "Connection", backup: Backup, *, replace: bool) -> AsyncIterator[None]:
    """Load all rows in one transaction, which is committed at the end of the block, unless something is raised there.

    The schema is made as it was when the rows were saved, and brought up to date around them: a migration that changes
    rows changes these, too.
    Raises: ConfigurationError when the backup or the database is of another version, or there are results already.
    """
    saved = backup.holds["migrations"]
    ours = dict(available())
    if unknown := [name for name in saved if name not in ours]:
        raise ConfigurationError(
            f"the backup has migration {unknown[0]}, which this version does not know: restore it with the newer version."
        )
    await connection.execute(_PLAIN)
    async with alone(connection), connection.transaction():
        if newer := [name for name in await applied(connection) if name not in saved]:
            raise ConfigurationError(
                f"the backup is older than this database, which has migration {newer[0]} already: "
                "make an empty one, restore before any service uses it, and it is brought up to date."
            )
        await migrate(connection, up_to=max(saved))
        for table in TABLES:
            await _clear(connection, table, replace=replace)
        for month in backup.holds["months"]:
            await connection.execute("SELECT results_partition($1)", date.fromisoformat(month))
        for table, told in backup.holds["tables"].items():
            if table == MARKS:
                await _clear(connection, table, replace=True)
            done = await connection.copy_to_table(table, source=backup.stream(table), columns=told["columns"])
            if _count(done) != told["rows"]:
                raise ConfigurationError(f"the backup holds {_count(done)} rows of {table}, and should hold {told['rows']}.")
        await migrate(connection)
        yield


async def _clear(connection: "Connection", table: str, *, replace: bool) -> None:
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
        return  # an old backup's schema has none of it
    if replace or table in {*LEDGER, MARKS}:
        await connection.execute(f"TRUNCATE {table}")
    elif await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):  # noqa: S608 - a name from here
        raise ConfigurationError(f"there are {table} in this database already: with --replace they are removed first.")


def _count(status: str) -> int:
    """Return the number in what the server says of a COPY (`COPY 12`)."""
    return int(status.rsplit(maxsplit=1)[-1])
