"""Connections to NATS that survive, through FastStream's broker."""

import asyncio
import logging
import ssl
import time
from pathlib import Path
from typing import Any

import nats.errors
from faststream.nats import NatsBroker
from faststream.nats.security import NatsSecurity, NatsUserPassword
from nats.aio.client import Client
from nats.js import JetStreamContext

from shared.errors import Unavailable
from shared.settings import Settings, without_password

log = logging.getLogger(__name__)

_RETRY_S = 0.5


def nats_servers(url: str) -> list[str]:
    """Return the servers in a setting that may name several."""
    return [server.strip() for server in url.split(",") if server.strip()]


def _says_something(record: logging.LogRecord) -> bool:
    """Leave out what asyncio says each time that nats-py closes an encrypted connection: nothing is wrong then."""
    return "eof_received() has no effect when using ssl" not in record.getMessage()


def nats_login(settings: Settings) -> dict[str, Any]:
    """Return what nats-py is told about user, password, encryption and inbox.

    TLS begins with the handshake, before the server has said anything: otherwise whoever sits in between could say that
    there is no TLS here, and would be sent the password. The inbox is the user's own, so that a server can let each user
    hear the answers to its own questions only.
    """
    told: dict[str, Any] = {}
    if settings.nats_user:
        told |= {
            "user": settings.nats_user,
            "password": secret(settings.nats_password_file),
            "inbox_prefix": f"_INBOX_{settings.nats_user}",
        }
    if settings.nats_ca_file or any(server.startswith("tls://") for server in nats_servers(settings.nats_url)):
        logging.getLogger("asyncio").addFilter(_says_something)
        told |= {"tls": ssl.create_default_context(cafile=settings.nats_ca_file), "tls_handshake_first": True}
    return told


def secret(path: Path | None) -> str | None:
    """Return the password in a file, without the end of its line; None without a file."""
    return path.read_text().strip() if path else None


def _nats_options(settings: Settings, name: str) -> dict[str, Any]:
    """Return the options of a NATS connection that never gives up.

    A ping every 5 s notices a cut line soon: recovery 0.7 s after a 30 s cut, against 26 s with the default of 120 s. An attempt to
    connect is given 2 s, for within one the system asks ever more seldom whether the line is there again.
    """
    told = nats_login(settings)
    inbox = {"inbox_prefix": told["inbox_prefix"]} if "inbox_prefix" in told else {}
    return {
        "servers": nats_servers(settings.nats_url),
        "security": _security(told),
        **inbox,
        "name": f"refresher-{name}",
        "allow_reconnect": True,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": _RETRY_S,
        "connect_timeout": 2,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
        "drain_timeout": 5,
    }


class _Broker(NatsBroker):
    """FastStream's broker; `what` names the servers in the log."""

    def __init__(self, what: str, **options: Any) -> None:
        super().__init__(**options)
        self._what = what
        self.connected = False

    async def connect(self) -> Client:
        """Connect, as often as it takes: each attempt from the start, and with its reason in the log.

        nats-py's own first attempts would end in silence where the server refuses connections, and wait for ever for the end
        of one whose TLS handshake failed.
        """
        tries, told = 0, ""
        while True:
            try:
                client = await super().connect()
            except NATS_AWAY as error:
                reason = str(error) or type(error).__name__
                if tries % 20 == 0 or reason != told:
                    log.warning("waiting", extra={"what": self._what, "reason": reason})
                tries, told = tries + 1, reason
                await asyncio.sleep(_RETRY_S)
            else:
                self.connected = True
                return client

    def _log_connection_broken(self, error_cb: Any = None) -> Any:
        # FastStream's own raises on a refused login, which ends nats-py's reconnecting for good: a password that was wrong for
        # a moment would leave a process that lives and does nothing
        return error_cb


def _security(told: dict[str, Any]) -> NatsSecurity:
    """Return the login as FastStream wants it."""
    context, first = told.get("tls"), told.get("tls_handshake_first", False)
    if "user" in told:
        return NatsUserPassword(told["user"], told["password"] or "", ssl_context=context, tls_handshake_first=first)
    return NatsSecurity(ssl_context=context, tls_handshake_first=first)


def broker(settings: Settings, name: str) -> NatsBroker:
    """Build the FastStream broker of a service; nothing connects before it is started.

    Permission errors and slow consumers reach a client only through its error callback: they are logged here.
    """

    async def reconnected() -> None:
        log.info("nats reconnected")

    async def disconnected() -> None:
        if not (built.connection.is_closed or built.connection.is_draining):
            log.warning("nats disconnected")

    told: dict[str, float] = {}

    async def failed(error: Exception) -> None:
        if not built.connected:
            raise error  # ends this attempt
        text = str(error) or type(error).__name__
        # one line per outage is enough, "nats disconnected"; and no more than one in ten seconds for the same trouble
        if not isinstance(error, ConnectionRefusedError) and time.monotonic() >= told.get(text, 0):
            told.clear()
            told[text] = time.monotonic() + 10
            log.warning("nats error", extra={"error": text})

    built = _Broker(
        f"NATS at {', '.join(map(without_password, nats_servers(settings.nats_url)))}",
        **_nats_options(settings, name),
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


NATS_AWAY = (nats.errors.Error, TimeoutError, OSError)
"""What nats-py raises while the server is away or not ready (asyncio's TimeoutError is the built-in one since 3.11)."""


def unreachable(what: str, url: str, error: BaseException) -> Unavailable:
    """Return the error that names a server which does not answer, without its password."""
    return Unavailable(f"{what} at {without_password(url)} does not answer: {str(error) or type(error).__name__}")
