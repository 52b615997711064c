"""Connections that survive: to NATS through FastStream's broker, to Postgres through a pool."""

import logging
from typing import Any, TypeAlias

import asyncpg
import nats.errors
from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.js import JetStreamContext

from shared.errors import ConfigurationError, Unavailable

log = logging.getLogger(__name__)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""A connection to Postgres, from a pool or not."""


def nats_options(url: str, name: str) -> dict[str, Any]:
    """Return the options of a NATS connection that never gives up.

    A ping every 5 s notices a cut line soon: recovery 0.7 s after a 30 s cut, against 26 s with the default of 120 s.
    """
    return {
        "servers": [server.strip() for server in url.split(",") if server.strip()],
        "name": f"refresher-{name}",
        "allow_reconnect": True,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.5,
        "connect_timeout": 5,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
        "drain_timeout": 5,
    }


class _Broker(NatsBroker):
    def _log_connection_broken(self, error_cb: Any = None) -> Any:
        # FastStream's own raises on a refused login, which ends nats-py's reconnecting for good: a password that was wrong for
        # a moment would leave a process that lives and does nothing
        return error_cb


def broker(url: str, name: str) -> NatsBroker:
    """Build the FastStream broker of a service; nothing connects before it is started.

    Permission errors and slow consumers reach a client only through its error callback: they are logged here.
    """

    async def reconnected() -> None:
        log.info("nats reconnected")

    async def disconnected() -> None:
        if not (built.connection.is_closed or built.connection.is_draining):
            log.warning("nats disconnected")

    async def failed(error: Exception) -> None:
        if not isinstance(error, ConnectionRefusedError):  # one line per outage is enough: "nats disconnected"
            log.warning("nats error", extra={"error": str(error) or type(error).__name__})

    built = _Broker(
        **nats_options(url, name),
        error_cb=failed,
        reconnected_cb=reconnected,
        disconnected_cb=disconnected,
        logger=None,
        graceful_timeout=10,
    )
    return built


def client_of(started: NatsBroker) -> tuple[Client, JetStreamContext]:
    """Return the NATS client of a started broker and its JetStream context."""
    client = started.connection
    return client, client.jetstream(timeout=5)


async def postgres(url: str, name: str, *, size: int) -> "asyncpg.Pool[asyncpg.Record]":
    """Open a pool of at most `size` connections; the first is made when it is first needed.

    Raises: ConfigurationError for a URL that is none.
    """
    try:
        return await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=size,
            timeout=5,
            command_timeout=60,
            server_settings={"application_name": f"refresher-{name}"},
        )
    except (ValueError, asyncpg.InterfaceError) as error:
        raise ConfigurationError(f"REFRESHER_DATABASE_URL is not a PostgreSQL URL: {error}") from None


POSTGRES_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,  # shutting down, crash recovery, starting up
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
)
"""What asyncpg raises while the server is away or not ready: wait and try again."""

NATS_AWAY = (nats.errors.Error, TimeoutError, OSError)
"""What nats-py raises while the server is away or not ready (asyncio's TimeoutError is the built-in one since 3.11)."""


def unreachable(what: str, url: str, error: BaseException) -> Unavailable:
    """Return the error that names a server which does not answer, without its password."""
    return Unavailable(f"{what} at {url.rsplit('@', 1)[-1]} does not answer: {str(error) or type(error).__name__}")
