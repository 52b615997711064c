"""Wire the scheduler: follow the schedules, publish a tick whenever one is due."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from nats.js import JetStreamContext
from starlette.applications import Starlette

from services.scheduler.metrics import LATE_S, Metrics
from services.scheduler.plan import Entry, Plan, tick_of
from services.scheduler.schedules import Change, Snapshot, follow
from services.scheduler.settings import SchedulerSettings
from shared import subjects
from shared.connect import broker, client_of
from shared.provision import provision, provision_on_request
from shared.publish import publish_until_stored
from shared.service import Service
from shared.waiting import happens

log = logging.getLogger(__name__)

LONGEST_SLEEP_S = 30.0
"""Wake at least this often to compare with the wall clock: it may be set, and machines sleep."""


class Clock:
    """Notices that the wall clock was set back: what was planned by the later time would not come due until then."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def went_back(self) -> bool:
        """Tell whether it was set back by more than a second since the last look."""
        before, self._ahead_s = self._ahead_s, time.time() - time.monotonic()
        return self._ahead_s < before - 1


class Scheduler:
    """Publishes what the plan says is due."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._plan = Plan()
        self._invalid: set[str] = set()
        self._paused: set[str] = set()
        self._changed = asyncio.Event()
        self._clock = Clock()

    async def follow(self, changes: AsyncIterator[Snapshot | Change]) -> None:
        """Keep the plan as the bucket says, for ever."""
        async for change in changes:
            if isinstance(change, Snapshot):
                gone = (self._plan.names() | self._invalid | self._paused) - {each.name for each in change.changes}
                for each in (*(Change(name, None) for name in gone), *change.changes):
                    self._apply(each)
            else:
                self._apply(change)
            for state, names in (("enabled", self._plan.names()), ("paused", self._paused), ("invalid", self._invalid)):
                self._metrics.schedules.labels(state).set(len(names))
            self._changed.set()

    async def publish(self, js: JetStreamContext) -> None:
        """Publish ticks as they come due, for ever. An entry is planned again only when its tick is in the stream."""
        async with asyncio.TaskGroup() as publishing:
            while True:
                self._changed.clear()
                now = datetime.now(UTC)
                if self._clock.went_back():
                    log.warning("the clock was set back: planning anew")
                    self._plan.replan(now)
                for entry in self._plan.take(now):
                    publishing.create_task(self._publish_one(js, entry, now))
                next_at = self._plan.next_at()
                until_next = (next_at - datetime.now(UTC)).total_seconds() if next_at else LONGEST_SLEEP_S
                await happens(self._changed, min(max(until_next, 0), LONGEST_SLEEP_S))

    async def _publish_one(self, js: JetStreamContext, entry: Entry, now: datetime) -> None:
        tick = tick_of(entry, now)
        new = await publish_until_stored(
            js,
            subjects.TICKS,
            subjects.tick(entry.site, entry.schedule.name, entry.due_at),
            tick.to_json(),
            f"{entry.schedule.name}:{entry.site}:{int(entry.due_at.timestamp())}",
        )
        lateness = max(0.0, (datetime.now(UTC) - tick.due_at).total_seconds())
        self._metrics.ticks.labels(tick.trigger, "new" if new else "already_there").inc()
        if new:
            self._metrics.lateness.observe(lateness)
            self._metrics.late.inc(lateness >= LATE_S)
            log.info(
                "tick published",
                extra={
                    "run_id": tick.run_id,
                    "schedule": tick.schedule,
                    "site": tick.site,
                    "trigger": tick.trigger,
                    "late_s": round(lateness, 3),
                },
            )
        self._plan.done(entry)
        self._changed.set()

    def _apply(self, change: Change) -> None:
        for names, belongs in (
            (self._invalid, change.invalid),
            (self._paused, bool(change.schedule and not change.schedule.enabled)),
        ):
            (names.add if belongs else names.discard)(change.name)
        if change.schedule:
            self._plan.put(change.schedule, datetime.now(UTC))
        else:
            self._plan.remove(change.name)


def build(settings: SchedulerSettings) -> tuple[Service, Starlette]:
    """Wire a scheduler; nothing connects before it is served."""
    service = Service("scheduler", broker(settings, "scheduler"))
    scheduler = Scheduler(Metrics(service.registry))

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with service.running():
            client, js = client_of(service.broker)
            await provision(js, settings.nats_replicas)
            await provision_on_request(client, js)
            service.spawn(scheduler.follow(follow(client, js)), "following the schedules")
            service.spawn(scheduler.publish(js), "publishing ticks")
            yield

    return service, service.app(lifespan)
