"""Create what must exist on the bus, or bring it up to date: streams, buckets and durable consumers.

Idempotent and safe from several processes at once; every service runs it at its start. Nothing else creates them:
subscribing to an existing durable consumer silently keeps its old settings.
"""

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError

from shared import subjects

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

CONSUMERS = (
    (
        subjects.RESULTS,
        # Unlimited deliveries: a database that is away never makes a dead letter of good data.
        ConsumerConfig(durable_name=subjects.RECORDER, ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_deliver=-1, max_ack_pending=10_000),
    ),
    (
        subjects.ADVISORIES,
        ConsumerConfig(durable_name=subjects.RECORDER, ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_deliver=-1, max_ack_pending=1_000),
    ),
)


async def provision(js: JetStreamContext, replicas: int = 1) -> None:
    """Create or update every stream, bucket and shared consumer, each on at least so many servers of a cluster.

    Raises: nats.errors.Error when the server refuses or does not answer.
    """
    for stream in STREAMS:
        config = stream.evolve(retention=RetentionPolicy.LIMITS, storage=stream.storage or StorageType.FILE, num_replicas=replicas)
        await _stream(js, config)
    for name, consumer in CONSUMERS:
        await js.add_consumer(name, consumer)


async def provision_runner(js: JetStreamContext, site: str) -> None:
    """Create or update the consumer that the runners of a site share."""
    await js.add_consumer(subjects.TICKS, runner_consumer(site))


def runner_consumer(site: str) -> ConsumerConfig:
    """Return what the consumer of a site's runners is like.

    It hands out one tick at a time, to one of them: they sit on the same line, and two tests at once would measure each other.
    """
    return ConsumerConfig(
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
        # never lowered: one service that was not told of the cluster would take the copies away from all
        found = (await js.stream_info(str(config.name))).config.num_replicas or 1
        await js.update_stream(config.evolve(num_replicas=max(found, config.num_replicas or 1)))
