"""Outages: when a line did not reach the internet, from the rows of the engine `connectivity`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.api import queries
from services.api.models import FailureView
from services.api.parameters import Line, Moment, Query, text_of
from services.api.parts import TheDatabase
from services.api.problems import documented, refused
from shared.events import Name

router = APIRouter(prefix="/api/v1", tags=["results"])

PERIOD = timedelta(days=7)
LONGEST = timedelta(days=31)
"""At ten seconds between checks that is 268,000 rows of a line."""


class OutagesQuery(Query):
    """Which outages are wanted."""

    site: Annotated[Name | None, Field(description="Only outages of this site.", examples=["home"])] = None
    line: Line = None
    schedule: Annotated[Name | None, Field(description="Only outages that this schedule found.", examples=["reachable"])] = None
    since: Annotated[
        Moment | None,
        Field(alias="from", description="Begin here; seven days before the end by default.", examples=["2026-10-01T00:00:00Z"]),
    ] = None
    until: Annotated[
        Moment | None, Field(alias="to", description="End before this time; now by default.", examples=["2026-10-08T00:00:00Z"])
    ] = None
    limit: Annotated[int, Field(ge=1, le=1_000, description="At most so many outages, the newest.")] = 100


_EXAMPLE: dict[str, Any] = {
    "site": "home",
    "line": None,
    "schedule": "reachable",
    "started_at": "2026-10-03T07:24:10.012000Z",
    "ended_at": "2026-10-03T07:31:40.009000Z",
    "open": False,
    "duration_s": 449.997,
    "checks": 15,
    "failure": {"kind": "line_down", "message": "none of 4 targets is reachable: tcp://1.1.1.1:443: 1.1.1.1: Network is unreachable; …"},
}


class Outage(BaseModel):
    """A line that did not reach the internet: checks that failed one after the other."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    site: str
    line: str | None
    """Null is the line without a name."""
    schedule: str | None
    """The schedule whose checks failed: others may ask for other targets. Null are those that nobody had scheduled."""
    started_at: datetime
    """When the first check began that failed: the line went down between the one before and this one."""
    ended_at: datetime | None
    """When the first check began that succeeded again; null where none did in the period."""
    open: bool
    """Whether no check succeeded since, in the period."""
    duration_s: Annotated[float, Field(ge=0)]
    """From start to end; of an open one, to the last check that failed."""
    checks: Annotated[int, Field(ge=1)]
    """How many checks failed."""
    failure: FailureView
    """That of the last one."""


class Outages(BaseModel):
    """Outages in a period, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"from": "2026-10-01T00:00:00.000000Z", "to": "2026-10-08T00:00:00.000000Z", "items": [_EXAMPLE]}]}
    )

    since: Annotated[datetime, Field(alias="from")]
    until: Annotated[datetime, Field(alias="to")]
    items: list[Outage]


@router.get("/outages", summary="List outages", operation_id="list_outages", response_model=Outages, responses=documented(422, 503))
async def listed(wanted: Annotated[OutagesQuery, InQuery()], database: TheDatabase) -> Response:
    """List the times when the engine `connectivity` found a line down, DNS down, or a login page, the newest first.

    Only checks that were due in the period count, 31 days at most. Between two checks nobody knows: an outage is as exact as
    they are far apart. Runs that were skipped or missed neither begin an outage nor end it.
    """
    until = wanted.until or datetime.now(UTC)
    since = wanted.since or until - PERIOD
    if since >= until:
        raise refused("from", "must be before `to`")
    if until - since > LONGEST:
        raise refused("from", f"more than {LONGEST.days} days before `to`")
    found = await queries.outages(database, wanted, since, until, wanted.limit)
    head = f'"from":"{text_of(since)}","to":"{text_of(until)}"'
    return Response(b'{%b,"items":%b}' % (head.encode(), found), media_type="application/json")
