"""Connections to Postgres, through a pool.

Apart from those to NATS: asyncpg is 2 MB in each process that imports it, and the scheduler and the runner need none of it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg

from shared.connect import secret
from shared.errors import ConfigurationError
from shared.settings import DatabaseSettings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""A connection to Postgres, from a pool or not."""

_IDLE_S = 30.0
"""A connection to Postgres that nobody has needed for so long is closed: each is a process there with megabytes of its own."""


async def postgres(settings: DatabaseSettings, name: str, *, size: int, only_reads: bool = False) -> "asyncpg.Pool[asyncpg.Record]":
    """Open a pool of at most `size` connections; the first is made when it is first needed.

    With `only_reads` nobody leaves anything in a session (a setting, a lock), and it is not told to forget it each time that it is
    handed back: that takes as long as a small query. And a statement is planned once, not for each value: over the months of a year
    that takes longer than to read a page, and the months that cannot have a row are left out when it runs.
    Raises: ConfigurationError for a URL that is none.
    """
    try:
        return await asyncpg.create_pool(
            settings.database_url,
            password=secret(settings.database_password_file),
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=_IDLE_S,
            timeout=5,
            command_timeout=60,
            reset=_nothing if only_reads else None,
            server_settings={
                "application_name": f"refresher-{name}",
                **({"plan_cache_mode": "force_generic_plan"} if only_reads else {}),
            },
        )
    except (ValueError, asyncpg.InterfaceError) as error:
        raise ConfigurationError(f"REFRESHER_DATABASE_URL is not a PostgreSQL URL: {error}") from None


async def _nothing(_: Connection) -> None:
    """A transaction that was left open is rolled back before this."""


@asynccontextmanager
async def lent(pool: "asyncpg.Pool[asyncpg.Record]") -> AsyncIterator[Connection]:
    """Lend a connection of a pool.

    Raises: one of POSTGRES_AWAY, also for a certificate that ran out: that is the server's fault, not that of what is stored.
    """
    try:
        connection = await pool.acquire()
    except ValueError as error:
        raise ConnectionError(str(error)) from error
    try:
        yield connection
    finally:
        await pool.release(connection)


POSTGRES_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,  # shutting down, crash recovery, starting up
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.InvalidAuthorizationSpecificationError,  # a password that is wrong, or being changed
    asyncpg.InvalidCatalogNameError,  # a database that is not there, or being restored
)
"""What asyncpg raises while the server is away or not ready: wait and try again."""
