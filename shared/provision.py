"""Create what must exist on the bus, or bring it up to date: streams, buckets and durable consumers.

The scheduler does, at its start: idempotent, and safe from several replicas at once. The other services wait until what
they need is there, so that their users need no right to change a stream; a runner of a new site asks the scheduler for its
consumer. Nothing else creates them: subscribing to an existing durable consumer silently keeps its old settings.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError
from pydantic import TypeAdapter, ValidationError

from shared import subjects
from shared.connect import NATS_AWAY
from shared.events import Name

log = logging.getLogger(__name__)

DAY_S = 24 * 3600.0
MIB = 2**20

CATCH_UP_WINDOW_S = DAY_S
"""How far back a scheduler looks for an instant that nobody published. Shorter than TICKS remembers, so that none is repeated."""

HEARTBEAT_S = 15.0
"""How often a runner says that it is there; after three times this it is gone from the bucket."""

REDELIVER_AFTER_S = (15.0, 15.0, 30.0, 60.0)
"""How long a runner may be silent about a tick, by delivery; a running test says so every third of the first."""
MAX_DELIVERIES = 5

STREAMS = (
    # One message per subject, and the second one refused: a tick exists once, whichever replica was first, for as long as
    # the stream remembers. Not a work queue: acknowledging would delete the subject and open it to a late duplicate.
    StreamConfig(
        name=subjects.TICKS,
        subjects=[subjects.ALL_TICKS],
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_age=2 * CATCH_UP_WINDOW_S,
        max_bytes=256 * MIB,
        duplicate_window=120,
    ),
    StreamConfig(
        name=subjects.RESULTS,
        subjects=[subjects.ALL_RESULTS],
        discard=DiscardPolicy.NEW,
        max_age=30 * DAY_S,
        max_bytes=1024 * MIB,
        duplicate_window=120,
    ),
    StreamConfig(
        name=subjects.DEAD,
        subjects=[subjects.ALL_DEAD],
        discard=DiscardPolicy.OLD,
        max_age=30 * DAY_S,
        max_bytes=256 * MIB,
        duplicate_window=120,
    ),
    StreamConfig(
        name=subjects.ADVISORIES,
        subjects=[subjects.EXHAUSTED],
        discard=DiscardPolicy.OLD,
        max_age=7 * DAY_S,
        max_bytes=16 * MIB,
        duplicate_window=120,
    ),
    # The two buckets: a NATS key-value bucket is a stream with these settings.
    StreamConfig(
        name=f"KV_{subjects.SCHEDULES}",
        subjects=[f"$KV.{subjects.SCHEDULES}.>"],
        max_msgs_per_subject=64,
        discard=DiscardPolicy.NEW,
        max_bytes=256 * MIB,
        max_msg_size=128 * 1024,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_direct=True,
        duplicate_window=120,
    ),
    StreamConfig(
        name=f"KV_{subjects.RUNNERS}",
        subjects=[f"$KV.{subjects.RUNNERS}.>"],
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        max_age=3 * HEARTBEAT_S,
        max_bytes=16 * MIB,
        max_msg_size=16 * 1024,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_direct=True,
        duplicate_window=3 * HEARTBEAT_S,
    ),
)

# Unlimited deliveries: a database that is away never makes a dead letter of good data. The name beside the durable name puts
# consumer and filter into the subject of the request, where a user can be allowed these and no others.
_RECORDER = ConsumerConfig(
    name=subjects.RECORDER, durable_name=subjects.RECORDER, ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_deliver=-1
)
CONSUMERS = (
    (subjects.RESULTS, _RECORDER.evolve(max_ack_pending=10_000)),
    (subjects.ADVISORIES, _RECORDER.evolve(max_ack_pending=1_000)),
)


async def provision(js: JetStreamContext, replicas: int = 1) -> None:
    """Create or update every stream, bucket and shared consumer, and update the consumers of the sites that are there.

    Each is kept on at least so many servers of a cluster.

    Raises: nats.errors.Error when the server refuses or does not answer.
    """
    for stream in STREAMS:
        config = stream.evolve(retention=RetentionPolicy.LIMITS, storage=stream.storage or StorageType.FILE, num_replicas=replicas)
        await _stream(js, config)
    for name, consumer in CONSUMERS:
        await js.add_consumer(name, consumer)
    seen = 0
    while page := await js.consumers_info(subjects.TICKS, seen):
        seen += len(page)
        for info in page:
            site = subjects.site_of(info.name)
            if site and differing(runner_consumer(site), info.config):
                await provision_runner(js, site)


async def provision_runner(js: JetStreamContext, site: str) -> None:
    """Create or update the consumer that the runners of a site share."""
    await js.add_consumer(subjects.TICKS, runner_consumer(site))


async def provision_on_request(client: Client, js: JetStreamContext) -> None:
    """Make the consumer of a site when its runner asks for it, for as long as the client is connected.

    Of several replicas one answers. What is no name of a site is not answered.
    """

    async def asked(message: Msg) -> None:
        site = message.subject.rsplit(".", 1)[-1]
        try:
            await provision_runner(js, _SITE.validate_python(site))
            await message.respond(b"")
        except (ValidationError, *NATS_AWAY) as error:
            log.warning("consumer of a site not made", extra={"site": site, "error": str(error) or type(error).__name__})
            return
        log.info("consumer of a site made", extra={"site": site})

    await client.subscribe(subjects.ALL_PROVISIONING, queue="scheduler", cb=asked)


async def until_streams(js: JetStreamContext, *names: str) -> None:
    """Wait until the scheduler has made these streams."""
    for name in names:
        await _until(f"stream {name}", lambda name=name: js.stream_info(name))  # type: ignore[misc]


async def until_consumer(js: JetStreamContext, stream: str, durable: str) -> None:
    """Wait until the scheduler has made a consumer."""
    await _until(f"consumer {durable} of stream {stream}", lambda: js.consumer_info(stream, durable))


async def until_runner(client: Client, js: JetStreamContext, site: str) -> None:
    """Wait until the consumer of a site's runners is there, and ask the scheduler for it where it is not."""

    async def there() -> None:
        try:
            await js.consumer_info(subjects.TICKS, subjects.runner_consumer(site))
        except NotFoundError:
            await client.request(subjects.provisioning(site), b"", timeout=5)

    await _until(f"consumer {subjects.runner_consumer(site)} of stream {subjects.TICKS}", there)


def runner_consumer(site: str) -> ConsumerConfig:
    """Return what the consumer of a site's runners is like.

    It hands out one tick at a time, to one of them: they sit on the same line, and two tests at once would measure each other.
    """
    return ConsumerConfig(
        name=subjects.runner_consumer(site),
        durable_name=subjects.runner_consumer(site),
        filter_subject=subjects.ticks_of(site),
        ack_policy=AckPolicy.EXPLICIT,
        max_deliver=MAX_DELIVERIES,
        max_ack_pending=1,
        backoff=list(REDELIVER_AFTER_S),
    )


async def _stream(js: JetStreamContext, config: StreamConfig) -> None:
    try:
        await js.add_stream(config)
    except BadRequestError as error:
        if error.err_code != 10058:  # the stream is there with other settings
            raise
        # never lowered: one scheduler that was not told of the cluster would take the copies away from all
        found = (await js.stream_info(str(config.name))).config.num_replicas or 1
        await js.update_stream(config.evolve(num_replicas=max(found, config.num_replicas or 1)))


def differing(wanted: StreamConfig | ConsumerConfig, found: Any) -> str:
    """Return which settings are not as they should be; empty when all are. What `wanted` does not set is the server's choice."""
    differences = []
    for field in dataclasses.fields(wanted):
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        is_set = ours is not None and (field.name, ours) != ("duplicate_window", 0)  # 0 stands for none given
        if is_set and ours != theirs:
            differences.append(f"{field.name} is {_plain(theirs)} instead of {_plain(ours)}")
    return ", ".join(differences)


def _plain(value: object) -> str:
    return str(getattr(value, "value", value))


async def _until(what: str, look: Callable[[], Awaitable[object]]) -> None:
    wait, tries = 0.05, 0
    while True:
        try:
            await look()
        except (NotFoundError, NoRespondersError):
            reason = "it is not there yet: the scheduler makes it"
        except NATS_AWAY as error:
            # a user without the right to look gets no answer at all; the server's complaint is in this log as "nats error"
            reason = str(error) or type(error).__name__
        else:
            return
        if tries % 20 == 0:
            log.log(logging.WARNING if tries else logging.INFO, "waiting", extra={"what": what, "reason": reason})
        tries += 1
        await asyncio.sleep(wait)
        wait = min(wait * 2, 2)


_SITE = TypeAdapter(Name)
