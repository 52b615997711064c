"""Wire the runner: take a tick, measure, publish the result, and only then acknowledge the tick."""

import asyncio
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError
from pydantic import ValidationError
from starlette.applications import Starlette

from services.runner import probes
from services.runner.heartbeat import Heartbeat
from services.runner.measure import measure
from services.runner.metrics import Metrics
from services.runner.progress import Reporter
from services.runner.settings import RunnerSettings
from shared import subjects
from shared.connect import NATS_AWAY, broker, client_of
from shared.dead import bury
from shared.errors import ConsumerGone
from shared.events import Result, Tick
from shared.provision import REDELIVER_AFTER_S, until_runner
from shared.publish import publish_until_stored
from shared.service import Service

log = logging.getLogger(__name__)


class Runner:
    """Measures for one site, one tick at a time."""

    def __init__(self, site: str, broker: NatsBroker, metrics: Metrics) -> None:
        host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()).strip("-") or "runner"
        self.id = f"{host}-{secrets.token_hex(3)}"
        self.site = site
        self._engines = probes.names()  # once: it reads the metadata of every installed package
        self.heartbeat = Heartbeat(self.id, site, self._engines)
        self._broker = broker
        self._metrics = metrics
        self._measuring: asyncio.Task[Result] | None = None
        self._stopping = False

    async def take(self, message: Msg) -> None:
        """Turn one message of the site's ticks into a result in the stream, and acknowledge it.

        The order makes a crash at any point harmless: a tick without a result is delivered again, and a result published twice
        is stored once.
        """
        client, js = client_of(self._broker)
        try:
            tick = Tick.model_validate_json(message.data)
        except ValidationError as error:
            self._metrics.dead.inc()
            return await bury(js, message, f"not a tick: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}")
        keeping = asyncio.create_task(_keep(message))
        try:
            result = await self._measure(tick, message.metadata.num_delivered or 1, Reporter(client, tick))
            if result is None:
                return await message.nak()
            # The runner's own id in that of the message: run ids can be foretold, and the server drops the second message of an
            # id on whatever subject the first came. A runner elsewhere could otherwise have this result dropped.
            message_id = f"{tick.run_id}:{self.id}"
            await publish_until_stored(js, subjects.RESULTS, subjects.result(self.site, tick.schedule), result.to_json(), message_id)
            await _acknowledge(message)
        finally:
            keeping.cancel()
        return None

    async def stop(self, stop_taking: Coroutine[Any, Any, None]) -> None:
        """Ask for no more ticks, and cut the run short, if there is one: its tick is handed back at once."""
        self._stopping = True
        stopping = asyncio.create_task(stop_taking)
        await asyncio.sleep(0)  # it first says that no other tick is wanted, else this one would come straight back
        if self._measuring:
            self._measuring.cancel()
        await stopping

    async def _measure(self, tick: Tick, attempt: int, report: Reporter) -> Result | None:
        """Measure and return the result, or None when this runner was told to stop."""
        if self._stopping:
            return None
        engine = tick.engine if tick.engine in self._engines else "unknown"
        self._metrics.redeliveries.inc(attempt > 1)
        self._metrics.waited.observe(max(0.0, (datetime.now(UTC) - tick.due_at).total_seconds()))
        self.heartbeat.busy_with(tick.run_id)
        log.info("run started", extra={"run_id": tick.run_id, "schedule": tick.schedule, "engine": tick.engine, "attempt": attempt})
        with self._metrics.in_flight.labels(engine, self.site).track_inprogress(), self._metrics.duration.labels(engine).time():
            self._measuring = asyncio.create_task(measure(tick, self.id, attempt, report))
            await asyncio.wait({self._measuring})
        self.heartbeat.busy_with(None)
        if self._measuring.cancelled():
            log.info("run handed back", extra={"run_id": tick.run_id})
            return None
        result = self._measuring.result()
        self._metrics.finished.labels(engine, self.site, result.status).inc()
        log.info("run finished", extra={"run_id": tick.run_id, "schedule": tick.schedule, "status": result.status, **_told(result)})
        return result


def _told(result: Result) -> dict[str, object]:
    if result.failure:
        return {"kind": result.failure.kind, "reason": result.failure.message}
    measured = result.measurement.model_dump(include={"download_bps", "upload_bps", "latency_s"}) if result.measurement else {}
    return {name: round(value, 6) for name, value in measured.items() if value is not None}


async def _acknowledge(message: Msg) -> None:
    try:
        await message.ack_sync()
    except NATS_AWAY as error:
        # the result is safe; should the acknowledgement be lost, the run is measured again and its second result dropped
        log.warning("tick not acknowledged", extra={"error": str(error) or type(error).__name__})


async def _keep(message: Msg) -> None:
    """Tell the server again and again that the tick is being worked on."""
    while True:
        await asyncio.sleep(REDELIVER_AFTER_S[0] / 3)
        try:
            await message.in_progress()
        except NATS_AWAY as error:
            log.warning("could not say that the run goes on", extra={"error": str(error) or type(error).__name__})


async def _watch_consumer(started: NatsBroker, site: str) -> None:
    """End when the site's consumer is gone: FastStream's pull loop would spin on it for ever.

    Raises: ConsumerGone; the service ends then and is restarted, which asks for the consumer again.
    """
    _, js = client_of(started)
    while True:
        try:
            await js.consumer_info(subjects.TICKS, subjects.runner_consumer(site))
        except NotFoundError:
            raise ConsumerGone(f"consumer {subjects.runner_consumer(site)} of stream {subjects.TICKS} is gone") from None
        except NATS_AWAY:
            log.debug("the consumer could not be looked at")
        await asyncio.sleep(5)


def build(settings: RunnerSettings) -> tuple[Service, Starlette]:
    """Wire a runner; nothing connects before it is served."""
    service = Service("runner", broker(settings, "runner"))
    runner = Runner(settings.site, service.broker, Metrics(service.registry))

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await service.broker.connect()
        client, js = client_of(service.broker)
        await until_runner(client, js, settings.site)
        async with service.running():
            service.spawn(runner.heartbeat.beat(js), "heartbeat")
            service.spawn(_watch_consumer(service.broker, settings.site), "watching the consumer")
            yield
            await runner.stop(ticks.stop())

    ticks = service.broker.subscriber(
        subjects.ticks_of(settings.site),
        stream=JStream(subjects.TICKS, declare=False),
        durable=subjects.runner_consumer(settings.site),
        pull_sub=PullSub(batch_size=1, timeout=5),
        ack_policy=AckPolicy.MANUAL,
        title="ticks",
        description="The ticks of this runner's site.",
    )

    @ticks
    async def on_tick(message: NatsMessage) -> None:
        try:
            await runner.take(message.raw_message)
        except Exception:
            # FastStream would go on with the next message; a runner with a bug ends, is restarted, and gets this one again
            log.exception("tick not handled")
            service.failed.set()

    return service, service.app(lifespan)
