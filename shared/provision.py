"""Create what must exist on the bus, or bring it up to date: streams, buckets and durable consumers.

The scheduler does, at its start: idempotent, and safe from several replicas at once. The other services wait until what
they need is there, so that their users need no right to change a stream; a runner of a new site asks the scheduler for its
consumer. Nothing else creates them: subscribing to an existing durable consumer silently keeps its old settings.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError
from pydantic import TypeAdapter, ValidationError

from shared import subjects
from shared.connect import NATS_AWAY
from shared.errors import ConfigurationError
from shared.events import LineName, Name
from shared.leaf import SCHEDULES, at_a_leaf, at_the_hub, consumers_of, from_the_first, plainly

log = logging.getLogger(__name__)

DAY_S = 24 * 3600.0
MIB = 2**20

TICKS_LIVE_S = 2 * DAY_S
"""How long a tick is remembered at most. Longer than any catch-up looks back (a day), so that none is repeated."""
TICK_KEPT_S = 5 * 60.0
"""So much longer than a scheduler could publish it again, or a runner could start it, a tick is remembered at the least."""

HEARTBEAT_S = 15.0
"""How often a runner says that it is there; after three times this it is gone from the bucket."""

LEASED_S = 12.0
"""How long a line is a runner's that said so last; one that measures says it every third of this."""

REDELIVER_AFTER_S = (15.0, 15.0, 30.0, 60.0)
"""How long a runner may be silent about a tick, by delivery; a running test says so every third of the first."""
MAX_DELIVERIES = 20
"""Waiting counts as well as measuring: whenever a runner ends, all ticks that wait for its line are delivered again. A tick
that ends every runner is given up after these, or when it expires."""
WAITING_AT_MOST = 500
"""So many ticks a runner is handed before it has ended one of them. What ends together is published together, which costs the
server much the same for few and for many."""

_LOOK_EVERY_S = 5.0

STREAMS = (
    # One message per subject, and the second one refused: a tick exists once, whichever replica was first, for as long as
    # the stream remembers. Not a work queue: acknowledging would delete the subject and open it to a late duplicate.
    StreamConfig(
        name=subjects.TICKS,
        subjects=[subjects.ALL_TICKS],
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_age=TICKS_LIVE_S,
        max_bytes=512 * MIB,
        duplicate_window=120,
        allow_atomic=True,  # what is due at once is written at once
        allow_msg_ttl=True,  # a tick goes as soon as no scheduler can publish it again: 10,000 a minute would fill any stream
    ),
    # Which line has a run that any line of its site may measure. One message per subject again: who is first has it. Not in
    # TICKS, since runners publish here: whoever publishes to a stream can have another's message dropped by taking its id.
    StreamConfig(
        name=subjects.CLAIMS,
        subjects=[subjects.ALL_CLAIMS],
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_age=TICKS_LIVE_S,
        max_bytes=64 * MIB,
        duplicate_window=120,
        allow_direct=True,  # a runner may read what is said of its own site, and the subject of such a request says which it is
        allow_msg_ttl=True,
    ),
    StreamConfig(
        name=subjects.RESULTS,
        subjects=[subjects.ALL_RESULTS],
        discard=DiscardPolicy.NEW,
        max_age=30 * DAY_S,
        max_bytes=1024 * MIB,
        duplicate_window=120,
        allow_atomic=True,  # what a runner has measured at once is written at once
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
    # The three buckets: a NATS key-value bucket is a stream with these settings.
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
    # Who measures on a line: a key can be written again by the one who wrote it last, or when it has expired.
    StreamConfig(
        name=f"KV_{subjects.LINES}",
        subjects=[f"$KV.{subjects.LINES}.>"],
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        max_age=2 * LEASED_S,
        max_bytes=16 * MIB,
        max_msg_size=16 * 1024,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_direct=True,
        allow_msg_ttl=True,
        duplicate_window=2 * LEASED_S,
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


async def provision(js: JetStreamContext, replicas: int = 1, *, leaves: tuple[str, ...] = (), leaf: str | None = None) -> None:
    """Create or update every stream, bucket and shared consumer, and update the consumers of the sites that are there.

    Each is kept on at least so many servers of a cluster. `leaves` are the sites that have servers of their own, which this one
    is the hub of; `leaf` is the site of this server where it is one of those.
    Raises: nats.errors.Error when the server refuses or does not answer.
    """
    for each in STREAMS:
        stream = at_a_leaf(each, leaf) if leaf else at_the_hub(each, leaves)
        config = stream.evolve(retention=RetentionPolicy.LIMITS, storage=stream.storage or StorageType.FILE, num_replicas=replicas)
        await _stream(js, config)
    for site in leaves:
        for name, consumer in consumers_of(site):
            await js.add_consumer(name, consumer)
    await _shared_consumers(js)
    seen = 0
    while page := await js.consumers_info(subjects.TICKS, seen):
        seen += len(page)
        for info in page:
            place = subjects.place_of_consumer(info.name)
            if place and differing(runner_consumer(*place), info.config):
                await provision_runner(js, *place)


async def until_copied_from_the_first(client: Client, js: JetStreamContext, site: str) -> None:
    """Wait, where the leaf of a site has no copy of the schedules yet, until the hub is about to hand it all of them."""
    try:
        await js.stream_info(SCHEDULES)
    except NotFoundError:
        await _until("schedules of the hub", lambda: from_the_first(client, site))


async def keep_provisioned(js: JetStreamContext) -> None:
    """Make the shared consumers again when somebody deleted one, for ever: the recorder, which ends then, waits for it."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        with contextlib.suppress(*NATS_AWAY):
            await _shared_consumers(js)


async def _shared_consumers(js: JetStreamContext) -> None:
    for name, consumer in CONSUMERS:
        await js.add_consumer(name, consumer)


async def provision_runner(js: JetStreamContext, site: str, line: str | None = None) -> None:
    """Create or update the consumer that the runners of a line share."""
    await js.add_consumer(subjects.TICKS, runner_consumer(site, line))


async def provision_on_request(client: Client, js: JetStreamContext) -> None:
    """Make the consumer of a line when its runner asks for it, for as long as the client is connected.

    Of several replicas one answers. What is no name of a site, or of a site and a line, is not answered.
    """

    async def asked(message: Msg) -> None:
        site, line = subjects.place_of(message.subject.rsplit(".", 1)[-1])
        told = {"site": site, "line": line}
        try:
            await provision_runner(js, _NAME.validate_python(site), _LINE.validate_python(line) if line else None)
            await message.respond(b"")
        except (ValidationError, *NATS_AWAY) as error:
            log.warning("consumer of a line not made", extra={**told, "error": str(error) or type(error).__name__})
            return
        log.info("consumer of a line made", extra=told)

    await client.subscribe(subjects.ALL_PROVISIONING, queue="scheduler", cb=asked)


async def until_streams(js: JetStreamContext, *names: str) -> None:
    """Wait until the scheduler has made these streams."""
    for name in names:
        await _until(f"stream {name}", lambda name=name: js.stream_info(name))  # type: ignore[misc]


async def until_consumer(js: JetStreamContext, stream: str, durable: str) -> None:
    """Wait until the scheduler has made a consumer."""
    await _until(f"consumer {durable} of stream {stream}", lambda: js.consumer_info(stream, durable))


async def until_runner(client: Client, js: JetStreamContext, site: str, line: str | None = None) -> None:
    """Wait until the consumer of a line's runners is there, and ask the scheduler for it where it is not."""
    consumer = subjects.runner_consumer(site, line)

    async def there() -> None:
        try:
            await js.consumer_info(subjects.TICKS, consumer)
        except NotFoundError:
            await client.request(subjects.provisioning(site, line), b"", timeout=5)

    await _until(f"consumer {consumer} of stream {subjects.TICKS}", there)


PIN_GROUP = "line"
UNPINNED_AFTER_S = 10.0
"""After so long without a request the runner that a line's ticks go to has lost it, and another one gets them."""


@dataclass
class PinnedConsumer(ConsumerConfig):
    """A consumer whose messages all go to one of its clients, for as long as that one asks for more (NATS ADR-42)."""

    priority_groups: list[str] = field(default_factory=lambda: [PIN_GROUP])
    priority_policy: str = "pinned_client"
    priority_timeout: float = UNPINNED_AFTER_S

    def as_dict(self) -> dict[str, object]:
        """Return it as the server wants it."""
        return {**super().as_dict(), "priority_timeout": int(self.priority_timeout * 1e9)}


def runner_consumer(site: str, line: str | None = None) -> PinnedConsumer:
    """Return what the consumer of a line's runners is like.

    All ticks go to one of them: they sit on the same line, and two tests at once would measure each other. That one sees what
    waits, and decides what goes first; the next is handed them when it has left or fallen silent.
    """
    return PinnedConsumer(
        name=subjects.runner_consumer(site, line),
        durable_name=subjects.runner_consumer(site, line),
        filter_subject=subjects.ticks_of(site),
        ack_policy=AckPolicy.EXPLICIT,
        max_deliver=MAX_DELIVERIES,
        max_ack_pending=WAITING_AT_MOST,
        backoff=list(REDELIVER_AFTER_S),
    )


async def _stream(js: JetStreamContext, config: StreamConfig) -> None:
    while True:
        found = await _found(js, str(config.name))
        try:
            if found is None:
                await js.add_stream(config)
            elif differing(config, found):
                await js.update_stream(_not_lowered(config, found))
        except APIError as error:
            if error.err_code == _THERE_WITH_OTHER_SETTINGS:  # of another version, which made it since the look
                continue
            if error.err_code == _STANDS_ALONE:
                told = f"REFRESHER_NATS_REPLICAS is {config.num_replicas}, and this NATS server stands alone"
                raise ConfigurationError(f"{told}: leave it away, or form a cluster.") from None
            if error.err_code not in _NO_ROOM:
                raise
            size = f"{(config.max_bytes or 0) // MIB} MiB"
            reason = f"the server has no room left for {size}: give JetStream more (max_file_store) or a larger disk"
            log.warning("waiting", extra={"what": f"stream {config.name}", "reason": reason})
            await asyncio.sleep(10)
            continue
        return


async def _found(js: JetStreamContext, name: str) -> StreamConfig | None:
    """Return what a stream is like. It is not simply added again: a server with little room left refuses that, although it is there."""
    try:
        return (await js.stream_info(name)).config
    except NotFoundError:
        return None


_THERE_WITH_OTHER_SETTINGS = 10058
_STANDS_ALONE = 10074
_NO_ROOM = (10023, 10047)
"""What the server answers when its storage, or that of every server of a cluster, is spoken for."""

_RAISED = ("max_age", "max_bytes")
"""What an operator may raise."""


def _not_lowered(wanted: StreamConfig, found: StreamConfig) -> StreamConfig:
    """Return the settings that a stream should have with what it has more of: more copies, or room that an operator gave it.

    One scheduler that was not told of the cluster would take the copies away from all.
    """
    limits = {name: getattr(found, name) for name in _RAISED if _is_more(getattr(found, name), getattr(wanted, name))}
    return wanted.evolve(num_replicas=max(found.num_replicas or 1, wanted.num_replicas or 1), **limits)


def _is_more(found: float | None, wanted: float | None) -> bool:
    return bool(wanted) and (not found or found < 0 or found > (wanted or 0))  # nothing, 0 and -1 stand for no limit


def differing(wanted: StreamConfig | ConsumerConfig, found: Any) -> str:
    """Return which settings are not as they should be; empty when all are. What `wanted` does not set is the server's choice.

    Limits that somebody raised are as they should be.
    """
    differences = []
    for name in (each.name for each in dataclasses.fields(found)):  # the library does not tell what it does not know of
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if name in {"sources", "mirror"}:
            ours, theirs = plainly(ours), plainly(theirs)
        is_set = ours is not None and (name, ours) != ("duplicate_window", 0)  # 0 stands for none given
        if is_set and ours != theirs and not (name in _RAISED and _is_more(theirs, ours)):
            differences.append(f"{name} is {_plain(theirs)} instead of {_plain(ours)}")
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


_NAME: TypeAdapter[str] = TypeAdapter(Name)
_LINE: TypeAdapter[str] = TypeAdapter(LineName)
