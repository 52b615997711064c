"""Apply the SQL files of `shared/migrations`, in order, each once, each in its own transaction."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files

import asyncpg

from shared.database import Connection
from shared.errors import ConfigurationError, Unavailable

log = logging.getLogger(__name__)

_LOCK = 0x5EF5E54E
_LEDGER = """
CREATE TABLE IF NOT EXISTS refresher_migrations (
  name text PRIMARY KEY,
  sha256 text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
)
"""


def available() -> list[tuple[str, str]]:
    """Return name and SQL of every migration, in the order in which they apply."""
    found = [entry for entry in files("shared").joinpath("migrations").iterdir() if entry.name.endswith(".sql")]
    return [(entry.name.removesuffix(".sql"), entry.read_text()) for entry in sorted(found, key=lambda entry: entry.name)]


async def migrate(connection: Connection, *, up_to: str | None = None) -> list[str]:
    """Bring the schema up to date and return the names of what was applied; several processes may call it at once.

    `up_to` names the last migration to apply: a backup is restored into the schema that it was made of.
    Raises: ConfigurationError when an applied migration is not the one that this version ships, or is unknown to it.
    """
    names: list[str] = []
    async with alone(connection):
        async with connection.transaction():  # in a transaction of the caller's, too, a refusal leaves the unlocking possible
            await connection.execute(_LEDGER)
        done = await applied(connection)
        for name, sql in available():
            if name in done or (up_to is not None and name > up_to):
                continue
            async with connection.transaction():
                await connection.execute(sql)
                await connection.execute("INSERT INTO refresher_migrations (name, sha256) VALUES ($1, $2)", name, _digest(sql))
            log.info("migration applied", extra={"migration": name})
            names.append(name)
        # every time: roles may have been made since; an old backup's schema has none of it
        if await connection.fetchval("SELECT to_regprocedure('grant_to_roles()') IS NOT NULL"):
            await connection.execute("SELECT grant_to_roles()")
    return names


@asynccontextmanager
async def alone(connection: Connection) -> AsyncIterator[None]:
    """Keep every other process from changing the schema; the same connection may ask for it again inside."""
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def applied(connection: Connection) -> dict[str, str]:
    """Return the names of the migrations that a database has, with the SHA-256 of each.

    Raises: ConfigurationError when one of them is not the one that this version ships, or is unknown to it.
    """
    if not await connection.fetchval("SELECT to_regclass('refresher_migrations') IS NOT NULL"):
        return {}
    done = {row["name"]: row["sha256"] for row in await connection.fetch("SELECT name, sha256 FROM refresher_migrations ORDER BY name")}
    _refuse_strangers(done, dict(available()))
    return done


async def migrate_if_allowed(connection: Connection) -> None:
    """Bring the schema up to date, or see that it is: a user without the right to change it needs another to have done so.

    Raises: Unavailable when that is still to be done, ConfigurationError as `migrate` does.
    """
    try:
        if await pending(connection):
            await migrate(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Unavailable(
            f"the schema is not up to date, and this user may not change it ({error}): `refresher migrate` as its owner does"
        ) from None


async def pending(connection: Connection) -> list[str]:
    """Return the names of the migrations that are yet to be applied.

    Raises: ConfigurationError as `applied` does.
    """
    done = await applied(connection)
    return [name for name, _ in available() if name not in done]


def _refuse_strangers(done: dict[str, str], ours: dict[str, str]) -> None:
    for name, digest in done.items():
        if name not in ours:
            raise ConfigurationError(f"the database has migration {name}, which this version does not know: run the newer version")
        if _digest(ours[name]) != digest:
            raise ConfigurationError(f"migration {name} was changed after it was applied: restore the file of the released version")


def _digest(sql: str) -> str:
    return sha256(sql.encode()).hexdigest()
