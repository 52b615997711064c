"""Wire the runner: take the ticks of a line, measure them one at a time, or beside it what does not use it, publish the results."""

import asyncio
import gc
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from faststream.nats import NatsBroker
from nats.aio.msg import Msg
from pydantic import ValidationError
from starlette.applications import Starlette

from services.runner import options, probes
from services.runner.beside import Beside
from services.runner.claims import Claims
from services.runner.heartbeat import Heartbeat
from services.runner.lease import LineLease
from services.runner.line import Line
from services.runner.measure import measure, not_run, uses_line
from services.runner.metrics import Metrics
from services.runner.offer import Offer
from services.runner.progress import Reporter
from services.runner.settings import RunnerSettings
from shared import subjects
from shared.connect import broker, client_of
from shared.dead import bury
from shared.errors import reasons
from shared.events import ANY, Result, Status, Tick
from shared.provision import PIN_GROUP, WAITING_AT_MOST, until_runner
from shared.publish import Message, publish_together
from shared.pull import Pull
from shared.service import Service

log = logging.getLogger(__name__)


class Runner:
    """Measures a line of a site, one tick at a time; what does not use the line is measured beside it."""

    def __init__(self, settings: RunnerSettings, broker: NatsBroker, metrics: Metrics) -> None:
        host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()).strip("-") or "runner"
        self.id = f"{host}-{secrets.token_hex(3)}"
        self.site, self.line, self.labels = settings.site, settings.line, settings.labels
        self._engines = probes.names()  # once: it reads the metadata of every installed package
        self.heartbeat = Heartbeat(self.id, settings, self._engines)
        self._broker = broker
        self._metrics = metrics
        claims = Claims(lambda: client_of(broker), self.id, (self.site, self.line), self._engines, self.labels)
        self._lease = LineLease(lambda: client_of(broker), self.id, self.site, self.line)
        self._line = Line(self.id, self._measure_line, self._publish, claims)

    async def work(self) -> None:
        """Take ticks and measure, for ever; when cancelled, hand back what has not ended.

        Raises: ConsumerGone when the line's consumer was deleted.
        """
        client, js = client_of(self._broker)
        consumer = subjects.runner_consumer(self.site, self.line)
        async with asyncio.TaskGroup() as tasks:
            measuring = tasks.create_task(self._line.run())
            beside = Beside(tasks, self._measure_beside, self._publish)
            try:
                async with Pull(client, js, subjects.TICKS, consumer, batch=WAITING_AT_MOST, group=PIN_GROUP) as pull:
                    while True:
                        in_turn: list[Offer] = []
                        at_once: list[Offer] = []
                        for offer in await self._offers(await pull.next()):
                            (in_turn if uses_line(offer.tick) else at_once).append(offer)
                        await beside.offer(at_once)
                        if in_turn:
                            await self._line.offer(in_turn)
            finally:
                # it has first said that no other tick is wanted, else these would come straight back
                await self._line.stop()
                await beside.stop()
                measuring.cancel()
                await self._lease.give_back()

    async def _offers(self, messages: Sequence[Msg]) -> list[Offer]:
        """Return the ticks that this line may measure; what is no tick is put aside, and what is another line's left to that one."""
        offers = []
        for message in messages:
            try:
                tick = Tick.model_validate_json(message.data)
            except ValidationError as error:
                self._metrics.dead.inc()
                _, js = client_of(self._broker)
                await bury(js, message, f"not a tick: {reasons(error)}")
                continue
            if tick.line in {self.line, ANY}:
                offers.append(Offer(tick, message))
            else:
                await message.ack()
        return offers

    async def _measure_line(self, offer: Offer) -> Result:
        async with self._lease.held(offer.tick.expires_at):
            self.heartbeat.busy_with(offer.tick.run_id)
            try:
                return await self._measure(offer)
            finally:
                self.heartbeat.busy_with(None)

    async def _measure_beside(self, offer: Offer) -> Result:
        if offer.came_late:
            return not_run(offer.tick, self.id, offer.attempt, Status.MISSED, offer.too_late(""))
        self.heartbeat.beside.add(offer.tick.run_id)
        try:
            return await self._measure(offer)
        finally:
            self.heartbeat.beside.discard(offer.tick.run_id)

    async def _measure(self, offer: Offer) -> Result:
        tick = offer.tick
        engine = tick.engine if tick.engine in self._engines else "unknown"
        self._metrics.redeliveries.inc(offer.attempt > 1)
        told = {"run_id": tick.run_id, "schedule": tick.schedule}
        self._metrics.waited.observe(max(0.0, (datetime.now(UTC) - (tick.start_at or tick.due_at)).total_seconds()))
        log.info("run started", extra={**told, "engine": tick.engine, "attempt": offer.attempt})
        in_flight, duration = self._metrics.in_flight.labels(engine, self.site), self._metrics.duration.labels(engine)
        with in_flight.track_inprogress(), duration.time(), Reporter(self._broker.connection, tick) as report:
            result = await measure(tick, self.id, offer.attempt, report, self.labels)
        self._metrics.finished.labels(engine, self.site, result.status).inc()
        log.info("run finished", extra={**told, "status": result.status, **_told(result)})
        return result

    async def _publish(self, results: Sequence[Result]) -> None:
        client, js = client_of(self._broker)
        await publish_together(client, js, subjects.RESULTS, [self._message(result) for result in results])
        for result in results:
            if result.started_at is None:
                told = {"run_id": result.run_id, "schedule": result.schedule, "status": result.status}
                log.info("run not started", extra={**told, **_told(result)})

    def _message(self, result: Result) -> Message:
        if result.started_at and result.line == ANY:
            result = result.model_copy(update={"line": self.line})  # what was for any line has been measured on this one
        # The runner's own id in that of the message: run ids can be foretold, and the server drops the second message of an
        # id on whatever subject the first came. A runner elsewhere could otherwise have this result dropped.
        return Message(subjects.result(self.site, result.schedule), result.to_json(), f"{result.run_id}:{self.id}")


def _told(result: Result) -> dict[str, object]:
    if result.failure:
        return {"kind": result.failure.kind, "reason": result.failure.message}
    measured = {name: getattr(result.measurement, name, None) for name in ("download_bps", "upload_bps", "latency_s")}
    return {name: round(value, 6) for name, value in measured.items() if value is not None}


def build(settings: RunnerSettings) -> tuple[Service, Starlette]:
    """Wire a runner; nothing connects before it is served."""
    service = Service("runner", broker(settings, "runner"))
    runner = Runner(settings, service.broker, Metrics(service.registry))

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await service.broker.connect()
        client, js = client_of(service.broker)
        await until_runner(client, js, settings.site, settings.line)
        async with service.running():
            await options.answer(service, settings.site, settings.line)
            gc.freeze()  # else a collection of garbage now and then holds up every run while it looks through all that was imported
            service.spawn(runner.heartbeat.beat(js), "heartbeat")
            service.spawn(runner.work(), "working")
            yield

    return service, service.app(lifespan)
