"""Wire the scheduler: follow the schedules, publish a tick whenever one is due."""

import asyncio
import gc
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from nats.aio.client import Client
from nats.js import JetStreamContext
from starlette.applications import Starlette

from services.scheduler.metrics import LATE_S, Metrics
from services.scheduler.plan import Entry, Plan
from services.scheduler.schedules import Change, Snapshot, follow
from services.scheduler.settings import SchedulerSettings
from shared import abandoned, subjects
from shared.connect import broker, client_of
from shared.events import Tick
from shared.leaf import keep_fetching
from shared.provision import keep_provisioned, provision, provision_on_request, until_copied_from_the_first
from shared.publish import BY_THEMSELVES, TOGETHER, Batch, Message, publish_together
from shared.service import Service
from shared.waiting import happens

log = logging.getLogger(__name__)

AT_ONCE = 12
"""So many batches are on their way to the server: it lets no more than 50 be open, and there may be another scheduler."""
OPEN_AT_MOST = 12
"""So many batches are made and handed to it ahead of their start."""
TOLD_ONE_BY_ONE = 10

AHEAD_S = 1.6
"""Many ticks of one instant are made so long before it. No whole number: it would be when those of another are committed."""
APART_S = 0.0005
"""The wall clock is steered, and so far apart from the one that a sleep goes by: no tick is published before its start."""
ON_TIME_S = 1.0
"""A tick that was made ahead is published up to so long after its start."""

LONGEST_SLEEP_S = 1.0
"""Wake at least this often to compare with the wall clock: it may be set, and machines sleep."""


class Clock:
    """Notices that the wall clock was set back: what was planned by the later time would not come due until then."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def went_back(self) -> bool:
        """Tell whether it was set back by more than a second since the last look."""
        before, self._ahead_s = self._ahead_s, time.time() - time.monotonic()
        return self._ahead_s < before - 1


class Made(NamedTuple):
    """An entry with its tick, ready to be published."""

    entry: Entry
    tick: Tick
    message: Message


class Scheduler:
    """Publishes what the plan says is due; at `only` one site, where that is given."""

    def __init__(self, metrics: Metrics, only: str | None = None) -> None:
        self._metrics, self._only = metrics, only
        self._plan = Plan()
        self._invalid: set[str] = set()
        self._paused: set[str] = set()
        self._changed = asyncio.Event()
        self._clock = Clock()
        self._open = 0
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def follow(self, changes: AsyncIterator[Snapshot | Change]) -> None:
        """Keep the plan as the bucket says, for ever."""
        async for change in changes:
            if isinstance(change, Snapshot):
                gone = (self._plan.names() | self._plan.broken() | self._invalid | self._paused) - {each.name for each in change.changes}
                for each in (*(Change(name, None) for name in gone), *change.changes):
                    self._apply(each)
                gc.freeze()  # else a collection of garbage now and then holds up every tick while it looks through the whole plan
                took_s = round(time.monotonic() - change.asked_at, 3)
                log.info("schedules read", extra={"schedules": len(change.changes), "took_s": took_s})
            else:
                self._apply(change)
            self._count()
            self._changed.set()

    async def publish(self, client: Client, js: JetStreamContext) -> None:
        """Publish ticks as they come due, for ever. An entry is planned again only when its tick is in the stream.

        Where many start at once they are made and handed to the server shortly before: each would be late by what it takes to
        make and send all.
        """
        async with asyncio.TaskGroup() as publishing:
            while True:
                self._changed.clear()
                now = datetime.now(UTC)
                if self._clock.went_back():
                    log.warning("the clock was set back: planning anew")
                    self._plan.replan(now)
                for together in _parts(self._plan.take(now)):
                    publishing.create_task(self._publish_now(client, js, together))
                for start_at, ahead in self._plan.take_ahead(now + timedelta(seconds=AHEAD_S)).items():
                    for together in _parts(ahead):
                        publishing.create_task(self._publish_at(client, js, together, start_at))
                next_at = self._plan.next_at()
                until_next = (next_at - datetime.now(UTC)).total_seconds() - AHEAD_S if next_at else LONGEST_SLEEP_S
                await happens(self._changed, min(max(until_next, 0), LONGEST_SLEEP_S))

    async def _publish_now(self, client: Client, js: JetStreamContext, entries: Sequence[Entry]) -> None:
        async with self._turns:
            await self._publish(client, js, self._made(entries, datetime.now(UTC)))

    async def _publish_at(self, client: Client, js: JetStreamContext, entries: Sequence[Entry], start_at: datetime) -> None:
        batch = None
        if len(entries) > BY_THEMSELVES and self._open < OPEN_AT_MOST:
            self._open += 1
            made = self._made(entries, start_at)
            batch = await Batch.opened(client, subjects.TICKS, [each.message for each in made])
        await asyncio.sleep((start_at - datetime.now(UTC)).total_seconds() + APART_S)
        if batch:
            self._open -= 1
            async with self._turns:
                if 0 <= (datetime.now(UTC) - start_at).total_seconds() < ON_TIME_S:
                    wanted = [each for each in made if self._plan.has(each.entry)]
                    await self._publish(client, js, wanted, batch if len(wanted) == len(made) else None)
                    return
        # not worth it, or the clock was set, the machine slept, the server was away: what is due now is taken with all else that is
        for entry in entries:
            self._plan.put_back(entry)
        self._changed.set()

    def _made(self, entries: Sequence[Entry], now: datetime) -> list[Made]:
        return [Made(entry, tick, _message(entry, tick, remembered)) for entry, tick, remembered in self._plan.ticks(entries, now)]

    async def _publish(self, client: Client, js: JetStreamContext, made: Sequence[Made], batch: Batch | None = None) -> None:
        new = await publish_together(client, js, subjects.TICKS, [each.message for each in made], batch)
        stored_at = datetime.now(UTC)
        for (entry, tick, _), is_new in zip(made, new, strict=True):
            self._metrics.ticks.labels(tick.trigger, "new" if is_new else "already_there").inc()
            if is_new:
                late_s = max(0.0, (stored_at - (tick.start_at or tick.due_at)).total_seconds())
                self._metrics.lateness.observe(late_s)
                self._metrics.late.inc(late_s >= LATE_S)
                if len(made) <= TOLD_ONE_BY_ONE:
                    told = {"run_id": tick.run_id, "schedule": tick.schedule, "site": tick.site, "trigger": tick.trigger}
                    log.info("tick published", extra={**told, "late_s": round(late_s, 3)})
            self._plan.done(entry)
        if len(made) > TOLD_ONE_BY_ONE:
            log.info("ticks published", extra={"ticks": len(made), "new": sum(new)})
        if self._plan.broken():
            self._count()
        self._changed.set()

    def _count(self) -> None:
        invalid = self._invalid | self._plan.broken()
        for state, number in (("enabled", len(self._plan)), ("paused", len(self._paused)), ("invalid", len(invalid))):
            self._metrics.schedules.labels(state).set(number)

    def _apply(self, change: Change) -> None:
        for names, belongs in (
            (self._invalid, change.invalid),
            (self._paused, bool(change.schedule and not change.schedule.enabled)),
        ):
            (names.add if belongs else names.discard)(change.name)
        schedule = change.schedule
        if schedule and self._only:
            schedule = schedule.model_copy(update={"sites": (self._only,)}) if self._only in schedule.sites else None
        if schedule:
            self._plan.put(schedule, datetime.now(UTC))
        else:
            self._plan.remove(change.name)


def _parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    return (entries[start : start + TOGETHER] for start in range(0, len(entries), TOGETHER))


def _message(entry: Entry, tick: Tick, remembered: timedelta) -> Message:
    return Message(
        subjects.tick(entry.site, entry.schedule.name, entry.due_at),
        tick.to_json(),
        f"{entry.schedule.name}:{entry.site}:{int(entry.due_at.timestamp())}",
        {"Nats-TTL": f"{math.ceil(remembered.total_seconds())}s"},
    )


def build(settings: SchedulerSettings) -> tuple[Service, Starlette]:
    """Wire a scheduler; nothing connects before it is served."""
    service = Service("scheduler", broker(settings, "scheduler"))
    metrics = Metrics(service.registry)
    scheduler = Scheduler(metrics, settings.leaf)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with service.running():
            client, js = client_of(service.broker)
            if settings.leaf:
                await until_copied_from_the_first(client, js, settings.leaf)
            await provision(js, settings.nats_replicas, leaves=settings.leaves, leaf=settings.leaf)
            await provision_on_request(client, js)
            service.spawn(keep_provisioned(js), "keeping the consumers")
            if settings.leaves:
                service.spawn(keep_fetching(client, js, settings.leaves), "fetching from leaves")
            if settings.leaf:
                service.spawn(abandoned.watch(client, js, metrics.abandoned), "settling abandoned ticks")
            service.spawn(scheduler.follow(follow(client, js)), "following the schedules")
            service.spawn(scheduler.publish(client, js), "publishing ticks")
            yield

    return service, service.app(lifespan)
