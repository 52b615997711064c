"""Wire the recorder: results from the stream into Postgres."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from nats.js import JetStreamContext
from starlette.applications import Starlette

from services.recorder import auditor, letters, months, rollups
from services.recorder.metrics import Metrics
from services.recorder.record import LANES, Recorder
from services.recorder.settings import RecorderSettings
from services.recorder.settler import Settler
from shared import abandoned, subjects
from shared.connect import NATS_AWAY, broker, client_of
from shared.database import postgres
from shared.provision import CONSUMERS, STREAMS, until_consumer
from shared.service import Service

log = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
CONNECTIONS = LANES + 5
"""To record, to settle, to audit, to look after the months, to add up, and to say that Postgres answers."""
_READ = {subjects.TICKS, *(stream for stream, _ in CONSUMERS)}


async def _watch_queues(js: JetStreamContext, metrics: Metrics) -> None:
    """Show how much waits, for ever: in every stream, and for every consumer, the runners' included."""
    while True:
        for stream in STREAMS:
            name = str(stream.name)
            try:
                metrics.stored.labels(name).set((await js.stream_info(name)).state.messages)
                consumers = await js.consumers_info(name) if name in _READ else ()
                for consumer in (each for each in consumers if each.config.durable_name):  # the others come and go
                    metrics.pending.labels(name, consumer.name).set(consumer.num_pending or 0)
                    metrics.unacknowledged.labels(name, consumer.name).set(consumer.num_ack_pending or 0)
            except NATS_AWAY as error:
                log.warning("a queue could not be looked at", extra={"stream": name, "error": str(error) or type(error).__name__})
        await asyncio.sleep(LOOK_EVERY_S)


async def _after(ready: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Do some work once the schema is there for it."""
    await ready.wait()
    await work()


def build(settings: RecorderSettings) -> tuple[Service, Starlette]:
    """Wire a recorder; nothing connects before it is served."""
    service = Service("recorder", broker(settings, "recorder"))
    metrics = Metrics(service.registry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        pool = await postgres(settings, "recorder", size=CONNECTIONS)
        service.check("postgres", lambda: pool.fetchval("SELECT 1"))
        try:
            async with service.running():
                client, js = client_of(service.broker)
                for stream, consumer in CONSUMERS:  # what is made last: the streams are there before
                    await until_consumer(js, stream, str(consumer.durable_name))
                await letters.answer(service, js)
                recorder = Recorder(pool, metrics, settings.recorder_batch)
                settler = Settler(pool, metrics, every_s=settings.recorder_settle_every_s, after_s=settings.recorder_settle_after_s)
                service.spawn(recorder.run(client, js), "recording")
                service.spawn(_after(recorder.is_migrated, lambda: settler.run(js)), "settling")
                service.spawn(
                    _after(recorder.is_migrated, lambda: auditor.watch(pool, metrics, settings.recorder_audit_every_s)), "auditing"
                )
                service.spawn(
                    _after(recorder.is_migrated, lambda: months.watch(pool, metrics, settings.retention)), "looking after the months"
                )
                service.spawn(_after(recorder.is_migrated, lambda: rollups.watch(pool)), "adding up")
                service.spawn(abandoned.watch(client, js, metrics.abandoned), "settling abandoned ticks")
                service.spawn(_watch_queues(js, metrics), "watching the queues")
                yield
        finally:
            pool.terminate()

    return service, service.app(lifespan)
