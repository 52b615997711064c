"""Wire the recorder: results from the stream into Postgres."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.js import JetStreamContext
from starlette.applications import Starlette

from services.recorder import abandoned
from services.recorder.metrics import Metrics
from services.recorder.record import Recorder
from services.recorder.settings import RecorderSettings
from shared import subjects
from shared.connect import NATS_AWAY, broker, client_of, postgres
from shared.provision import CONSUMERS, STREAMS, until_consumer
from shared.service import Service

log = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
_READ = {subjects.TICKS, *(stream for stream, _ in CONSUMERS)}


async def _watch_queues(js: JetStreamContext, metrics: Metrics) -> None:
    """Show how much waits, for ever: in every stream, and for every consumer, the runners' included."""
    while True:
        for stream in STREAMS:
            name = str(stream.name)
            try:
                metrics.stored.labels(name).set((await js.stream_info(name)).state.messages)
                for consumer in await js.consumers_info(name) if name in _READ else ():
                    metrics.pending.labels(name, consumer.name).set(consumer.num_pending or 0)
                    metrics.unacknowledged.labels(name, consumer.name).set(consumer.num_ack_pending or 0)
            except NATS_AWAY as error:
                log.warning("a queue could not be looked at", extra={"stream": name, "error": str(error) or type(error).__name__})
        await asyncio.sleep(LOOK_EVERY_S)


def build(settings: RecorderSettings) -> tuple[Service, Starlette]:
    """Wire a recorder; nothing connects before it is served."""
    service = Service("recorder", broker(settings, "recorder"))
    metrics = Metrics(service.registry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        pool = await postgres(settings, "recorder", size=2)
        service.check("postgres", lambda: pool.fetchval("SELECT 1"))
        try:
            async with service.running():
                client, js = client_of(service.broker)
                for stream, consumer in CONSUMERS:  # what is made last: the streams are there before
                    await until_consumer(js, stream, str(consumer.durable_name))
                service.spawn(Recorder(pool, metrics, settings.recorder_batch).run(client, js), "recording")
                service.spawn(abandoned.watch(client, js, metrics), "settling abandoned ticks")
                service.spawn(_watch_queues(js, metrics), "watching the queues")
                yield
        finally:
            pool.terminate()

    return service, service.app(lifespan)
