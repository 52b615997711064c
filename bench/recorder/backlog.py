"""Results on the stream that no recorder has stored yet."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from nats.js.errors import NotFoundError

from shared import subjects
from shared.events import Failure, Measurement, Result, Server, Status, run_id_of
from shared.provision import CONSUMERS, provision
from shared.publish import TOGETHER, Message, publish_together

SITES = 50
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
EVERY = timedelta(minutes=1)
_AT_ONCE = 4
"""So many atomic batches are on their way at a time."""
_RESULTS = next(consumer for stream, consumer in CONSUMERS if stream == subjects.RESULTS)


def result(number: int) -> Result:
    """Return a result of 50 sites that measure once a minute; one of 50 failed, and every figure is another."""
    site, due_at = f"site-{number % SITES}", BEGIN + number // SITES * EVERY
    share = number * 0.6180339887 % 1
    good = number % 49 != 0
    return Result(
        run_id=run_id_of("minutely", site, due_at),
        site=site,
        schedule="minutely",
        trigger="schedule",
        engine="http",
        due_at=due_at,
        status=Status.SUCCEEDED if good else Status.FAILED,
        runner=f"runner-{site}",
        started_at=due_at + timedelta(milliseconds=12),
        finished_at=due_at + timedelta(seconds=20),
        engine_version="1",
        measurement=_measurement(share) if good else None,
        failure=None if good else Failure(kind="timeout", message="no answer within 60 s"),
    )


def _measurement(share: float) -> Measurement:
    return Measurement(
        download_bps=5e7 * (1 + share),
        upload_bps=2e7 * (1 + share),
        latency_s=0.01 * (1 + share),
        jitter_s=0.001 * share,
        packet_loss=0.01 * share,
        download_latency_s=0.02 + 0.05 * share,
        upload_latency_s=0.03 + 0.05 * share,
        responsiveness_rpm=500 + 1_000 * share,
        download_bytes=117_440_512,
        upload_bytes=47_185_920,
        server=Server(id="4711", name="Frankfurt", url="http://test.example.net/", country_code="DE"),
    )


async def prepare(js: JetStreamContext) -> None:
    """Make the streams; the one of results takes atomic batches, so that a backlog is there soon, and a large one."""
    await provision(js)
    config = (await js.stream_info(subjects.RESULTS)).config
    await js.update_stream(config.evolve(allow_atomic=True, max_bytes=4 * 2**30))


async def publish(client: Client, js: JetStreamContext, first: int, after: int) -> None:
    """Put results on the stream, in their order but for a few thousand."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def batch(start: int) -> None:
        async with turns:
            messages = []
            for number in range(start, min(start + TOGETHER, after)):
                made = result(number)
                messages.append(Message(subjects.result(made.site, made.schedule), made.to_json(), str(made.run_id)))
            assert all(await publish_together(client, js, subjects.RESULTS, messages))

    await asyncio.gather(*(batch(start) for start in range(first, after, TOGETHER)))


@asynccontextmanager
async def held_back(js: JetStreamContext) -> AsyncIterator[None]:
    """Make the recorder's consumer anew, before the first message, and let it deliver at the end of the context."""
    with suppress(NotFoundError):
        await js.delete_consumer(subjects.RESULTS, subjects.RECORDER)
    await js.add_consumer(subjects.RESULTS, _RESULTS)
    until = datetime.now(UTC) + timedelta(hours=1)
    await js.pause_consumer(subjects.RESULTS, subjects.RECORDER, until.isoformat())
    yield
    await js.resume_consumer(subjects.RESULTS, subjects.RECORDER)


async def is_done(js: JetStreamContext) -> bool:
    """Tell whether every result was delivered and acknowledged."""
    consumer = await js.consumer_info(subjects.RESULTS, subjects.RECORDER)
    return not consumer.num_pending and not consumer.num_ack_pending


def fetching() -> ConsumerConfig:
    """Return what a consumer of the same messages is like that nobody shares."""
    return _RESULTS.evolve(name=None, durable_name=None)
