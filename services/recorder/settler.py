"""The one place that closes gaps: an instant that nobody can fill any more becomes a missed row, which says why.

Every few seconds one recorder looks at what was to start since the last time, notes which of it has no row, and decides about
those for which it is time. What it decides is published like any other result, and recorded like any other; a run that turns
out to have started after all takes the place of such a row.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from services.recorder import open_runs
from services.recorder.history import Recorded, read_asked, read_results, read_schedules
from services.recorder.metrics import Metrics
from services.recorder.open_runs import OpenRun
from services.recorder.presence import Presence
from services.recorder.verdict import Later, Nobodys, Present, verdict
from shared import ledger, subjects
from shared.claims import said
from shared.connect import NATS_AWAY
from shared.database import Connection, lent
from shared.events import ANY, Failure, Result, Status, Tick
from shared.history import versions
from shared.ledger import Due, Span, Version
from shared.publish import publish
from shared.schedules import Schedule

log = logging.getLogger(__name__)

INSTANTS_AT_ONCE = 10_000
"""So many instants are looked at in one piece: days without a recorder are worked through in many."""
TICKS_AT_ONCE = 50
RECORDED_WITHIN_S = 5.0
"""How long a sweep waits for the recorder to store what had been published when it began."""

_LOCK = 0x5E771E4
_YIELD_EVERY = 200


class Settler:
    """Closes gaps: looks every `every_s` seconds, and leaves each run `after_s` seconds in which its row may still be on its way."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", metrics: Metrics, *, every_s: float, after_s: float) -> None:
        self._pool, self._metrics = pool, metrics
        self._every_s, self._patience = every_s, timedelta(seconds=after_s)
        self._presence = Presence(after_s)
        self._recorded: Recorded | None = None
        self._versions: list[Version] = []
        self._spans: list[Span] = []
        self._current: dict[str, Schedule | None] = {}

    async def run(self, js: JetStreamContext) -> None:
        """Sweep, for ever; while NATS or Postgres is away, it waits."""
        while True:
            has_more = False
            try:
                has_more = await self.sweep(js)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, *NATS_AWAY) as error:
                log.warning("gaps cannot be looked for now", extra={"error": str(error) or type(error).__name__})
            if not has_more:
                await asyncio.sleep(self._every_s)

    async def sweep(self, js: JetStreamContext) -> bool:
        """Look once, unless another recorder does, and return whether there is more to be looked at."""
        async with lent(self._pool) as connection, alone(connection) as is_alone:
            if not is_alone:
                return False
            await read_schedules(connection, js)
            await read_asked(connection, js)
            self._recorded = await read_results(connection, js, self._recorded)
            await self._learn(connection)
            now = min(datetime.now(UTC), await connection.fetchval("SELECT clock_timestamp()"))
            has_more = await self._open_up(connection, now - self._patience)
            has_more = await self._settle(connection, js, now) or has_more
            self._metrics.open.set(await open_runs.count(connection))
            return has_more

    async def _learn(self, connection: Connection) -> None:
        """Bring what is known of the schedules' history up to date."""
        if await connection.fetchval("SELECT count(*) FROM schedule_versions") < len(self._versions):
            self._versions = []  # the database was restored
        new = await versions(connection, self._versions[-1].number if self._versions else 0)
        if new or not self._versions:
            self._versions += new
            self._spans = ledger.spans(self._versions)
            self._current = {version.name: version.schedule for version in self._versions}

    async def _open_up(self, connection: Connection, horizon: datetime) -> bool:
        """Note what was to start up to the horizon and has no row, or a piece of it; return whether more is left."""
        after = await open_runs.settled_until(connection, horizon)
        until = horizon
        while (found := await self._instants(after, until)) is None:
            until = after + (until - after) / 2
        if until > after:
            await open_runs.open_up(connection, found, until)
        return until < horizon

    async def _instants(self, after: datetime, until: datetime) -> list[Due] | None:
        """Return what was to start in (after, until], or None when it is too much and could be less."""
        found: list[Due] = []
        for due in ledger.starting(self._spans, after, until):
            found.append(due)
            if len(found) % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            if len(found) > INSTANTS_AT_ONCE and until - after > timedelta(seconds=1):
                return None
        return found

    async def _settle(self, connection: Connection, js: JetStreamContext, now: datetime) -> bool:
        """Decide about the open runs for which it is time; return whether there are more of them."""
        # who is busy first, the results after that: a run that ends in between has published its result by then
        present = await self._presence.look(js, now)
        await open_runs.note_leaves(connection, present.leaves)
        if not await open_runs.count(connection):
            return False
        if not await _is_recorded(js):
            return False  # the row of any of them may be on its way
        await open_runs.close(connection)
        runs = await open_runs.to_look_at(connection, now)
        for start in range(0, len(runs), TICKS_AT_ONCE):
            part = await asyncio.gather(*(self._known(js, run, now) for run in runs[start : start + TICKS_AT_ONCE]))
            await self._decide(connection, js, part, present)
        return len(runs) == open_runs.LOOKED_AT_ONCE

    async def _known(self, js: JetStreamContext, run: OpenRun, now: datetime) -> OpenRun:
        """Return what can be learned of a run before it is decided about."""
        run = await self._with_tick(js, run, now)
        if run.line == ANY and run.expires_at is not None and run.expires_at <= now:
            claim = await said(js, subjects.claim(run.site, run.run_id))
            return replace(run, line=claim.line) if claim else run  # that line answers for it
        return run

    async def _with_tick(self, js: JetStreamContext, run: OpenRun, now: datetime) -> OpenRun:
        """Return what its tick says of a run, where there is one that was not seen before."""
        if run.expires_at is not None or run.schedule is None:
            return run
        is_watched = run.is_watched or (run.tick_until is not None and now <= run.tick_until)
        try:
            message = await js.get_msg(subjects.TICKS, subject=subjects.tick(run.site, run.schedule, run.due_at))
            tick = Tick.model_validate_json(message.data or b"")
        except (NotFoundError, ValidationError):  # no tick, or one that no runner can read either
            return replace(run, is_watched=is_watched)
        if tick.trigger == "catch_up":
            self._presence.scheduler_is_catching_up()
        known = replace(run, is_watched=is_watched, tick_sequence=message.seq, expires_at=tick.expires_at)
        return replace(known, line=tick.line, engine=tick.engine, trigger=tick.trigger)

    async def _decide(self, connection: Connection, js: JetStreamContext, runs: Sequence[OpenRun], present: Present) -> None:
        missed: list[tuple[OpenRun, Failure]] = []
        later: list[tuple[OpenRun, datetime]] = []
        dropped: list[OpenRun] = []
        for run in runs:
            schedule = self._current.get(run.schedule or "")
            may_be = run.expires_at is None and ledger.may_be_published(schedule, run.site, run.due_at, present.now)
            match verdict(run, present, self._patience, may_be_published=may_be):
                case Later(at):
                    later.append((run, at))
                case Nobodys():
                    dropped.append(run)
                case Failure() as failure:
                    missed.append((run, failure))
                    later.append((run, present.now + self._patience))  # until its row is there
        await asyncio.gather(*(self._publish(js, run, failure) for run, failure in missed))
        await open_runs.look_again(connection, later)
        await open_runs.drop(connection, dropped)

    async def _publish(self, js: JetStreamContext, run: OpenRun, failure: Failure) -> None:
        result = missed_result(run, failure, datetime.now(UTC))
        subject = subjects.result(run.site, run.schedule)
        if await publish(js, subjects.RESULTS, subject, result.to_json(), f"{run.run_id}:settler"):
            self._metrics.settled.labels(failure.kind).inc()
            told = {"run_id": run.run_id, "schedule": run.schedule, "site": run.site, "due_at": run.due_at.isoformat()}
            log.info("run missed", extra={**told, "kind": failure.kind, "reason": failure.message})


def missed_result(run: OpenRun, failure: Failure, now: datetime) -> Result:
    """Return the result of a run that nobody started."""
    return Result(
        run_id=run.run_id,
        site=run.site,
        schedule=run.schedule,
        trigger=run.trigger,
        engine=run.engine,
        line=run.line,
        due_at=run.due_at,
        start_at=run.start_at if run.start_at != run.due_at else None,
        status=Status.MISSED,
        finished_at=now,
        failure=failure,
    )


@asynccontextmanager
async def alone(connection: Connection) -> AsyncIterator[bool]:
    """Tell whether no other recorder sweeps, and keep it so until the end of the block."""
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # with the connection the lock is gone, too
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def _is_recorded(js: JetStreamContext) -> bool:
    """Wait until every result that is in the stream now was stored, and return whether that was soon."""
    last = (await js.stream_info(subjects.RESULTS)).state.last_seq
    deadline = time.monotonic() + RECORDED_WITHIN_S
    while True:
        consumer = await js.consumer_info(subjects.RESULTS, subjects.RECORDER)
        floor = consumer.ack_floor.stream_seq if consumer.ack_floor else 0
        if floor >= last or not (consumer.num_pending or consumer.num_ack_pending):
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.1)
