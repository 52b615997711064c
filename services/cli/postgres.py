"""A connection to the database, for the commands that need one themselves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from services.cli import target
from shared.connect import secret, unreachable
from shared.errors import ConfigurationError, RefresherError


@asynccontextmanager
async def connection() -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Give a connection to the system's database.

    Raises: ConfigurationError for a URL that is none, Unavailable for a server that does not answer, RefresherError when
    it refuses what is done with the connection.
    """
    url = target.database_url()
    password = secret(target.settings().database_password_file)
    try:
        opened = await asyncpg.connect(url, password=password, timeout=5, server_settings={"application_name": "refresher-cli"})
    except (ValueError, asyncpg.InterfaceError) as error:
        raise ConfigurationError(f"REFRESHER_DATABASE_URL is not a PostgreSQL URL: {error}") from None
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise unreachable("PostgreSQL", url, error) from None
    try:
        yield opened
    except asyncpg.PostgresError as error:
        raise RefresherError(f"PostgreSQL at {url.rsplit('@', 1)[-1]} refuses: {error}") from None
    finally:
        await opened.close(timeout=5)
