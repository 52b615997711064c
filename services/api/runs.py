"""Runs that somebody asks for now, and the runners that do them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Body
from fastapi import Query as InQuery
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.api import fleet, queries, store
from services.api.bodies import AdHocRun, RunBody, ScheduledRun
from services.api.bus import Bus
from services.api.database import Database
from services.api.feed import Feed
from services.api.models import EXAMPLE
from services.api.parameters import Query
from services.api.parts import TheBus, TheDatabase, TheFeed
from services.api.problems import documented, refused
from services.api.streaming import EVENT_SCHEMA, EVENTS, KEEP_ALIVE, KEEP_ALIVE_S, sent, streamed
from shared import subjects
from shared.errors import Unavailable
from shared.events import Tick
from shared.publish import publish
from shared.runners import Runner

router = APIRouter(prefix="/api/v1", tags=["runs"])

AD_HOC_START_WITHIN_S = 3_600
_LOOK_EVERY_S = 2.0
"""How often to look for the row of a run whose result did not pass here: the line to NATS may have been cut."""
_RECORDED_WITHIN_S = 0.03
"""How often to look once the result has passed: the recorder commits within milliseconds."""


class Accepted(BaseModel):
    """A run that was asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run_id": EXAMPLE["run_id"],
                    "site": "home",
                    "schedule": "hourly",
                    "engine": "speedtest",
                    "due_at": "2026-10-03T07:24:10.000000Z",
                    "subject": "refresher.tick.home.hourly.run.0b6ef0d44e5a5e0e8a7a0f6b8a3c1d52",
                }
            ]
        }
    )

    run_id: UUID
    site: str
    schedule: str | None
    engine: str
    due_at: datetime
    subject: str
    """The NATS subject of the tick."""


class RunQuery(Query):
    """Whether to wait."""

    wait: Annotated[bool, Field(description="Stream the progress and then the result.")] = False
    timeout_s: Annotated[int, Field(ge=1, le=900, description="With `wait`: for how long. The run goes on after that.")] = 180


class RunnerList(BaseModel):
    """The runners that are there; one that is silent for 45 s is not."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "id": "attic-1",
                            "site": "home",
                            "engines": ["noop", "speedtest"],
                            "version": "0.1.0",
                            "host": "attic",
                            "started_at": "2026-10-01T08:00:00Z",
                            "seen_at": "2026-10-03T07:24:15Z",
                            "run_id": EXAMPLE["run_id"],
                        }
                    ]
                }
            ]
        }
    )

    items: list[Runner]


_EVENT = {"event": "progress", "data": '{"run_id":"0b6ef0d4-4e5a-5e0e-8a7a-0f6b8a3c1d52","phase":"download","rate_bps":93e6,…}'}


@router.post(
    "/runs",
    summary="Run a test now",
    operation_id="run_now",
    status_code=202,
    response_model=Accepted,
    responses={
        202: {
            "description": "The run is on its way; the result will be at `Location`. With `wait`, a stream of `run`, `progress` "
            "and `result` events, or `timeout` at its end.",
            "content": {EVENTS: {"schema": EVENT_SCHEMA, "example": _EVENT}},
            "headers": {"Location": {"description": "Where the result will be.", "schema": {"type": "string"}}},
        },
        **documented(404, 413, 415, 422, 503),
    },
)
async def run(
    body: Annotated[RunBody, Body()], wanted: Annotated[RunQuery, InQuery()], bus: TheBus, feed: TheFeed, database: TheDatabase
) -> Response:
    """Run a schedule now, or an engine without one; runs of a site go one after another.

    404 when there is no such schedule.
    """
    tick = await _tick(bus, body)
    headers = {"Location": f"/api/v1/results/{tick.run_id}"}
    if wanted.wait:
        return await streamed(_watched(tick, bus, feed, database, wanted.timeout_s), EVENTS, headers, 202)
    await _publish(bus, tick)
    return Response(_accepted(tick), 202, headers, "application/json")


@router.get("/runners", summary="List runners", operation_id="list_runners", responses=documented(422, 503))
async def runners(bus: TheBus) -> RunnerList:
    """List the runners that are there, by site: what they can measure, and the run they are busy with."""
    return RunnerList(items=await fleet.present(bus))


async def _tick(bus: Bus, body: ScheduledRun | AdHocRun) -> Tick:
    now = datetime.now(UTC)
    if isinstance(body, AdHocRun):
        expires_at = now + timedelta(seconds=AD_HOC_START_WITHIN_S)
        return _manual(now, expires_at, site=body.site, line=body.line, engine=body.engine, options=body.options)
    schedule, _ = await store.schedule_of(bus, body.schedule)
    if body.site is None and len(schedule.sites) > 1:
        raise refused("site", f"schedule {schedule.name} has several sites, name one: {', '.join(schedule.sites)}")
    site = body.site or schedule.sites[0]
    if site not in schedule.sites:
        raise refused("site", f"no site of schedule {schedule.name}, which has {', '.join(schedule.sites)}")
    expires_at = now + timedelta(seconds=schedule.start_within_s)
    what = {field: getattr(schedule, field) for field in ("engine", "options", "fallback", "line", "labels", "priority")}
    return _manual(now, expires_at, site=site, schedule=schedule.name, **what)


def _manual(due_at: datetime, expires_at: AwareDatetime, **fields: object) -> Tick:
    return Tick.model_validate(
        {"run_id": uuid4(), "trigger": "manual", "due_at": due_at, "published_at": due_at, "expires_at": expires_at, **fields}
    )


async def _publish(bus: Bus, tick: Tick) -> None:
    with bus.reached() as js:
        subject = subjects.manual_tick(tick.site, tick.schedule, tick.run_id)
        await publish(js, subjects.TICKS, subject, tick.to_json(), str(tick.run_id))


def _accepted(tick: Tick) -> bytes:
    subject = subjects.manual_tick(tick.site, tick.schedule, tick.run_id)
    due_at = tick.due_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    known = {"run_id": str(tick.run_id), "site": tick.site, "schedule": tick.schedule, "engine": tick.engine}
    return json.dumps({**known, "due_at": due_at, "subject": subject}).encode()


async def _watched(tick: Tick, bus: Bus, feed: Feed, database: Database, timeout_s: int) -> AsyncGenerator[bytes, None]:
    """Publish a tick and yield what happens until its result is stored, or the time is over."""
    clock = asyncio.get_running_loop().time
    deadline, spoke_at, look_every = clock() + timeout_s, clock(), _LOOK_EVERY_S
    with feed.listening(run_id=tick.run_id) as listener:  # before the tick is out: nothing of it is missed
        await _publish(bus, tick)
        yield sent("run", _accepted(tick))
        while (left := deadline - clock()) > 0:
            taken = await listener.take(min(left, look_every))
            if taken is None:
                return
            for event in taken[1]:
                if event.kind == "progress":
                    yield sent("progress", event.data)
                    spoke_at = clock()
                elif event.kind == "result":
                    look_every = _RECORDED_WITHIN_S
            if stored := await _stored(database, tick.run_id):
                yield sent("result", stored)
                return
            if clock() - spoke_at >= KEEP_ALIVE_S - _LOOK_EVERY_S:
                yield KEEP_ALIVE
                spoke_at = clock()
    detail = f"No result after {timeout_s} s; the run goes on, its result will be at /api/v1/results/{tick.run_id}."
    yield sent("timeout", json.dumps({"run_id": str(tick.run_id), "detail": detail}).encode())


async def _stored(database: Database, run_id: UUID) -> bytes | None:
    try:
        return await queries.one(database, run_id)
    except Unavailable:
        await asyncio.sleep(0.5)
        return None
