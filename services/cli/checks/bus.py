"""The bus: NATS reachable, JetStream on, every stream, bucket and durable consumer there with the settings it needs."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from services.cli import target
from services.cli.checks import Finding
from shared import subjects
from shared.connect import NATS_AWAY, nats_login, nats_servers, unreachable
from shared.errors import RefresherError, Unavailable
from shared.provision import CONSUMERS, STREAMS, differing
from shared.settings import without_password

RESTART = "restart the scheduler: it creates what is missing and corrects what differs when it starts"
NEARLY_FULL = 0.8


@asynccontextmanager
async def connection() -> AsyncIterator[Client]:
    """Give a connection to NATS that does not try again.

    Raises: Unavailable when it does not answer or refuses.
    """
    url, settings = target.nats_url(), target.settings()
    causes: list[Exception] = []

    async def remember(cause: Exception) -> None:
        causes.append(cause)

    # one attempt in the end means two: with none at all nats-py would never give up
    limits = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.1, "connect_timeout": 3}
    try:
        client = await nats.connect(nats_servers(url), name="refresher-doctor", error_cb=remember, **limits, **nats_login(settings))
    except (*NATS_AWAY, ValueError, AttributeError) as error:  # nats-py parses a URL that is none in several ways
        cause = causes[-1] if causes else error  # "no servers available" says less than why
        if "Authorization" in str(cause):
            raise Unavailable(f"NATS at {without_password(url)} refuses the user or the password that it was given") from None
        raise unreachable("NATS", url, cause) from None
    try:
        yield client
    finally:
        await client.close()


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Say which server it was that refused, or did not answer.

    Raises: RefresherError, Unavailable.
    """
    try:
        yield
    except APIError as error:
        raise RefresherError(f"NATS at {url.rsplit('@', 1)[-1]} refuses: {error.description}") from None
    except NATS_AWAY as error:
        raise unreachable("NATS", url, error) from None


async def check(client: Client) -> AsyncIterator[Finding]:
    """Yield what is found about JetStream, streams, buckets and the consumers that do not depend on a site."""
    js = client.jetstream(timeout=5)
    try:
        await js.account_info()
    except NATS_AWAY as error:
        raise Unavailable(f"JetStream is off on this NATS server or closed to this user ({error or type(error).__name__})") from None
    yield Finding("jetstream", "ok", "is on")
    for stream in STREAMS:
        yield await _stream(js, stream)
    for name, consumer in CONSUMERS:
        yield await check_consumer(js, name, consumer)
    yield await _dead_letters(js)


async def check_consumer(js: JetStreamContext, stream: str, wanted: ConsumerConfig) -> Finding:
    """Return what is found about a durable consumer."""
    durable = str(wanted.durable_name)
    name = f"consumer {durable} of {stream}"
    try:
        info = await js.consumer_info(stream, durable)
    except NotFoundError:
        return Finding(name, "failed", "is not there", RESTART)
    if differences := differing(wanted, info.config):
        return Finding(name, "failed", differences, RESTART)
    told = f"{info.num_pending or 0} pending, {info.num_ack_pending or 0} being worked on, {info.num_redelivered or 0} delivered again"
    if info.num_redelivered:
        return Finding(name, "warning", told, "see the log of the service that reads it: it could not finish, and tries again")
    return Finding(name, "ok", told)


async def _stream(js: JetStreamContext, config: StreamConfig) -> Finding:
    bucket = str(config.name).removeprefix("KV_")
    name = f"stream {config.name}" if bucket == config.name else f"bucket {bucket}"
    try:
        info = await js.stream_info(str(config.name))
    except NotFoundError:
        return Finding(name, "failed", "is not there", RESTART)
    wanted = config.evolve(retention=RetentionPolicy.LIMITS, storage=config.storage or StorageType.FILE)
    if differences := differing(wanted, info.config):
        return Finding(name, "failed", differences, RESTART)
    share = info.state.bytes / (config.max_bytes or 1)
    told = f"{info.state.messages:,} messages, {share:.0%} full"
    if share > NEARLY_FULL:
        return Finding(name, "warning", told, "see that what reads it keeps up; when it is full, nothing new is taken")
    return Finding(name, "ok", told)


async def _dead_letters(js: JetStreamContext) -> Finding:
    try:
        count = (await js.stream_info(subjects.DEAD)).state.messages
    except NotFoundError:
        return Finding("dead letters", "warning", "cannot be counted without their stream", RESTART)
    if count:
        return Finding("dead letters", "warning", f"{count:,} messages could not be used", "read them: refresher dead list")
    return Finding("dead letters", "ok", "none")
