"""Schedules: what is to be measured, where and when."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import islice, repeat
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path
from fastapi import Query as InQuery
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.api import options, store
from services.api.bodies import SPEC, NewSchedule, ScheduleBody
from services.api.bus import Bus
from services.api.parameters import Moment, Query, text_of
from services.api.parts import TheBus
from services.api.problems import ProblemError, documented
from shared.due import following, instants, same_everywhere, start_of
from shared.events import Name
from shared.schedules import Schedule, ScheduleSpec

router = APIRouter(prefix="/api/v1/schedules", tags=["schedules"])

ScheduleName = Annotated[Name, Path(description="The name of the schedule.", examples=["hourly"])]
IfMatch = Annotated[str | None, Header(description="The revision that this is about, as `ETag` gave it, or `*`.", examples=['"17"'])]
_ETAG = {"ETag": {"description": "The revision, for `If-Match`.", "schema": {"type": "string"}}}
_LOCATION = {"Location": {"description": "The path of the schedule.", "schema": {"type": "string"}}}

_EXAMPLE: dict[str, Any] = {
    **SPEC,
    "name": "hourly",
    "active_since": "2026-10-01T08:00:00Z",
    "revision": 17,
    "next_due_at": "2026-10-03T07:24:00Z",
}


class ScheduleView(Schedule):
    """A schedule as it is stored, and what follows from it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    revision: int
    """Changes with every change."""
    next_due_at: AwareDatetime | None
    """The earliest of its sites; null while it is paused, and when none is left."""


class InvalidSchedule(BaseModel):
    """A value in the bucket that is no schedule: somebody else wrote it."""

    name: str
    reason: str


class ScheduleList(BaseModel):
    """All schedules, by name, and what is stored among them and is none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_EXAMPLE], "invalid": []}]})

    items: list[ScheduleView]
    invalid: Annotated[list[InvalidSchedule], Field(examples=[[{"name": "broken", "reason": "timing: Field required"}]])]


class InstantQuery(Query):
    """Which instants are wanted."""

    site: Annotated[Name | None, Field(description="Only those of this site.", examples=["home"])] = None
    since: Annotated[
        Moment | None, Field(alias="from", description="From this time on; by default from now on.", examples=["2026-10-01T00:00:00Z"])
    ] = None
    limit: Annotated[int, Field(ge=1, le=100, description="At most so many.")] = 10


class InstantView(BaseModel):
    """An instant at which a schedule is due at a site."""

    site: str
    due_at: AwareDatetime
    start_at: AwareDatetime
    """`due_at` with the spread of the site and the jitter of the run."""


class InstantList(BaseModel):
    """Instants, the earliest first; fewer than were asked for when no other will ever be due."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"site": "home", "due_at": "2026-10-03T07:24:00.000000Z", "start_at": "2026-10-03T07:26:41.204000Z"}]}]
        }
    )

    items: list[InstantView]


def _documented(created: bool) -> dict[int | str, dict[str, Any]]:
    return {200: {"headers": _ETAG}, **({201: {"model": ScheduleView, "headers": {**_ETAG, **_LOCATION}}} if created else {})}


@router.get("", summary="List schedules", operation_id="list_schedules", response_model=ScheduleList, responses=documented(422, 503))
async def listed(bus: TheBus) -> Response:
    """List all schedules, in order of their names."""
    items, invalid = [], []
    for number, each in enumerate(await store.everything(bus)):
        if each.schedule:
            items.append(_view(each.schedule, each.revision))
        else:
            invalid.append({"name": each.name, "reason": each.reason})
        if number % 100 == 99:
            await asyncio.sleep(0)  # the next instant of a cron expression takes up to 0.1 ms
    return Response(json.dumps({"items": items, "invalid": invalid}), media_type="application/json")


@router.post(
    "",
    summary="Create a schedule",
    operation_id="create_schedule",
    status_code=201,
    response_model=ScheduleView,
    responses={201: {"headers": {**_ETAG, **_LOCATION}}, **documented(409, 413, 415, 422, 503)},
)
async def create(body: NewSchedule, bus: TheBus) -> Response:
    """Create a schedule; it applies within a second."""
    schedule = store.applied(body.name, body, None)
    await options.check(bus, body)
    return _answer(schedule, await store.create(bus, schedule), 201)


@router.get(
    "/{name}",
    summary="Get a schedule",
    operation_id="get_schedule",
    response_model=ScheduleView,
    responses={**_documented(created=False), **documented(404, 422, 503)},
)
async def one(name: ScheduleName, bus: TheBus) -> Response:
    """Get a schedule. Its `ETag` is what `If-Match` wants."""
    return _answer(*await store.schedule_of(bus, name))


@router.get(
    "/{name}/instants",
    summary="Foretell a schedule",
    operation_id="list_instants",
    response_model=InstantList,
    responses=documented(404, 422, 503),
)
async def foretold(name: ScheduleName, wanted: Annotated[InstantQuery, InQuery()], bus: TheBus) -> Response:
    """List the next instants at which a schedule is due, as if it were not paused, with the start of each run: the earliest first."""
    schedule, _ = await store.schedule_of(bus, name)
    if wanted.site is not None and wanted.site not in schedule.sites:
        raise ProblemError(404, f"{wanted.site!r} is no site of schedule {name!r}, which has {', '.join(schedule.sites)}.")
    sites = (wanted.site,) if wanted.site else tuple(dict.fromkeys(schedule.sites))
    after = (wanted.since or datetime.now(UTC)) - timedelta(microseconds=1)
    found = merge(*(zip(instants(schedule, site, after), repeat(site)) for site in sites))
    items = [
        {"site": site, "due_at": text_of(due_at), "start_at": text_of(start_of(schedule, site, due_at))}
        for due_at, site in islice(found, wanted.limit)
    ]
    return Response(json.dumps({"items": items}), media_type="application/json")


@router.put(
    "/{name}",
    summary="Replace or create a schedule",
    operation_id="replace_schedule",
    response_model=ScheduleView,
    responses={**_documented(created=True), **documented(409, 412, 413, 415, 422, 503)},
)
async def replace(name: ScheduleName, body: ScheduleBody, bus: TheBus, if_match: IfMatch = None) -> Response:
    """Replace what a person decides about a schedule, or create it. What is not in the body gets its default.

    When the sites change, or anything that says when it is due, instants before now are no longer due. With `If-Match` it
    is replaced only if it is still as you read it.
    """
    stored = await store.find(bus, name)
    _must_match(if_match, stored)
    schedule = store.applied(name, body, stored.schedule if stored else None)
    if stored is None:
        await options.check(bus, body)
        return _answer(schedule, await store.create(bus, schedule), 201)
    if schedule == stored.schedule:
        return _answer(schedule, stored.revision)
    await options.check(bus, body)
    return _answer(schedule, await store.replace(bus, schedule, stored.revision))


@router.delete(
    "/{name}",
    summary="Delete a schedule",
    operation_id="delete_schedule",
    status_code=204,
    responses=documented(404, 409, 412, 413, 422, 503),
)
async def delete(name: ScheduleName, bus: TheBus, if_match: IfMatch = None) -> None:
    """Delete a schedule. Its results stay."""
    stored = await store.find(bus, name)
    if stored is None:
        raise ProblemError(404, f"There is no schedule {name!r}.")
    _must_match(if_match, stored)
    await store.delete(bus, name, stored.revision)


@router.post(
    "/{name}/pause",
    summary="Pause a schedule",
    operation_id="pause_schedule",
    response_model=ScheduleView,
    responses={**_documented(created=False), **documented(404, 409, 413, 415, 422, 503)},
)
async def pause(name: ScheduleName, bus: TheBus) -> Response:
    """Pause a schedule: what would be due meanwhile is not, and is not caught up. Pausing a paused one changes nothing."""
    return await _switch(bus, name, enabled=False)


@router.post(
    "/{name}/resume",
    summary="Resume a schedule",
    operation_id="resume_schedule",
    response_model=ScheduleView,
    responses={**_documented(created=False), **documented(404, 409, 413, 415, 422, 503)},
)
async def resume(name: ScheduleName, bus: TheBus) -> Response:
    """Resume a schedule from now on. Resuming one that is not paused changes nothing."""
    return await _switch(bus, name, enabled=True)


async def _switch(bus: Bus, name: str, *, enabled: bool) -> Response:
    while True:  # whatever else somebody changes at the same time: this changes only one field
        before, revision = await store.schedule_of(bus, name)
        spec = ScheduleSpec(**{field: getattr(before, field) for field in ScheduleSpec.model_fields if field != "enabled"}, enabled=enabled)
        schedule = store.applied(name, spec, before)
        if schedule == before:
            return _answer(before, revision)
        try:
            return _answer(schedule, await store.replace(bus, schedule, revision))
        except ProblemError:
            continue


def _must_match(if_match: str | None, stored: store.Stored | None) -> None:
    """Raise ProblemError 412 unless the present revision is among those of an If-Match header."""
    if if_match is None:
        return
    tags = [tag.strip() for tag in if_match.split(",")]
    present = f'"{stored.revision}"' if stored else None
    if present is None or not {"*", present} & set(tags):
        raise ProblemError(412, f"If-Match names {if_match[:100]}, but " + (f"the revision is {present}." if present else "there is none."))


def _answer(schedule: Schedule, revision: int, status: int = 200) -> Response:
    headers = {"ETag": f'"{revision}"', **({"Location": f"/api/v1/schedules/{schedule.name}"} if status == 201 else {})}
    return Response(json.dumps(_view(schedule, revision)), status, headers, "application/json")


def _view(schedule: Schedule, revision: int) -> dict[str, Any]:
    return {**schedule.model_dump(mode="json"), "revision": revision, "next_due_at": _next_due_at(schedule)}


def _next_due_at(schedule: Schedule) -> str | None:
    if not schedule.enabled:
        return None
    sites = schedule.sites[:1] if same_everywhere(schedule) else schedule.sites
    now = datetime.now(UTC)
    found = [instant for site in sites if (instant := following(schedule, site, now))]
    return min(found).strftime("%Y-%m-%dT%H:%M:%SZ") if found else None
