"""The pool of connections to Postgres, for reading. An outage is `Unavailable`, and ends by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from shared.connect import unreachable
from shared.database import POSTGRES_AWAY, Connection, postgres
from shared.errors import Unavailable
from shared.settings import DatabaseSettings

CONNECTIONS = 8
LONG_READS = 2
"""How many exports and audits run at once: each keeps a connection for as long as its reader takes."""


class Database:
    """Postgres, or the error that says that it is away."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings, self._url = settings, settings.database_url
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._long_reads = asyncio.Semaphore(LONG_READS)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep the pool for as long as the service runs; nothing connects before a query."""
        self._pool = await postgres(self._settings, "api", size=CONNECTIONS, only_reads=True)
        try:
            yield
        finally:
            self._pool.terminate()  # only reads: nothing to lose, and an export must not hold up the end

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection.

        Raises: Unavailable when Postgres does not answer, has no tables yet, or all connections are busy for 5 s.
        """
        if self._pool is None:
            raise Unavailable("The API is only starting.")
        try:
            async with self._pool.acquire(timeout=5) as connection:
                yield connection
        except asyncpg.UndefinedTableError:
            raise Unavailable("The database has no tables yet: run `refresher migrate`, or start a recorder.") from None
        except asyncpg.InsufficientPrivilegeError as error:
            raise Unavailable(
                f"The database does not let this user read ({error}): its owner grants it with `refresher migrate`."
            ) from None
        except POSTGRES_AWAY as error:
            raise unreachable("Postgres", self._url, error) from error

    @asynccontextmanager
    async def long_read(self) -> AsyncIterator[Connection]:
        """Lend a connection for as long as somebody reads.

        Raises: Unavailable as `connection` does, and when there are too many long reads already.
        """
        if self._long_reads.locked():
            raise Unavailable(f"{LONG_READS} exports or audits run already, and that is all this API serves at once.")
        async with self._long_reads, self.connection() as connection:
            yield connection

    async def rows(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Return all rows of a query."""
        async with self.connection() as connection:
            return await connection.fetch(sql, *arguments)

    async def row(self, sql: str, *arguments: Any) -> asyncpg.Record | None:
        """Return the first row of a query, or None."""
        async with self.connection() as connection:
            return await connection.fetchrow(sql, *arguments)

    async def answers(self) -> None:
        """Raise Unavailable unless Postgres answers and has the tables."""
        await self.row("SELECT 1 FROM results LIMIT 0")
