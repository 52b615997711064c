"""What came out over a period, in buckets of the calendar of a zone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from datetime import time as clock_time
from itertools import islice
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import AfterValidator, Field
from starlette.responses import Response

from services.api import summaries
from services.api.conditional import IfNoneMatch, answer_once, documented_once
from services.api.models import Summary
from services.api.parameters import Moment, Origin, text_of
from services.api.parts import TheDatabase, TheMemory
from services.api.problems import refused
from shared.schedules import known_zone

router = APIRouter(prefix="/api/v1", tags=["results"])

BUCKETS = 2_000
"""At most so many in one answer: 83 days by the hour."""
PERIOD = timedelta(days=30)
_HOUR = timedelta(hours=1)

Size = Literal["none", "hour", "day", "week", "month"]


class SummaryQuery(Origin):
    """The period, how it is divided, and which results count."""

    since: Annotated[
        Moment | None, Field(alias="from", description="Begin here; 30 days before the end by default.", examples=["2026-10-01T00:00:00Z"])
    ] = None
    until: Annotated[
        Moment | None, Field(alias="to", description="End before this time; now by default.", examples=["2026-11-01T00:00:00Z"])
    ] = None
    bucket: Annotated[Size, Field(description="How the period is divided; `none` leaves it whole. A week begins on Monday.")] = "none"
    zone: Annotated[
        str,
        Field(
            max_length=64,
            description="The IANA time zone whose hours, days, weeks and months the buckets are.",
            examples=["Europe/Berlin"],
            json_schema_extra={"format": "time-zone"},
        ),
        AfterValidator(known_zone),
    ] = "UTC"


@router.get(
    "/summary", summary="Summarise results", operation_id="summarise_results", response_model=Summary, responses=documented_once(422, 503)
)
async def summarise(
    wanted: Annotated[SummaryQuery, InQuery()], database: TheDatabase, memory: TheMemory, if_none_match: IfNoneMatch = None
) -> Response:
    """Summarise a period: how runs ended, and mean, minimum, maximum, median and 95th percentile of what was measured.

    The first and the last bucket are cut to the period. At most 2,000 buckets. Percentiles of buckets that are put together from
    hours and days of UTC are approximate: within 1 %. Of months that were dropped (`REFRESHER_RETENTION`) whole hours of UTC are
    left: each counts in the bucket in which it begins. With `to` given, `If-None-Match` tells whether it
    changed; without it, each answer is of another period.
    """
    until = wanted.until or datetime.now(UTC)
    since = wanted.since or until - PERIOD
    if since >= until:
        raise refused("from", "must be before `to`")
    head = f'"from":"{text_of(since)}","to":"{text_of(until)}","bucket":"{wanted.bucket}","zone":"{wanted.zone}"'

    async def made() -> bytes:
        edges = list(islice(_edges(since, until, wanted.bucket, ZoneInfo(wanted.zone)), BUCKETS + 2))
        if len(edges) > BUCKETS + 1:
            raise refused("bucket", f"more than {BUCKETS} buckets: ask for longer ones or a shorter period")
        return f'{{{head},"buckets":[{await summaries.summary(database, wanted, edges)}]}}'.encode()

    return answer_once(await memory.answer((wanted, since, until), made), if_none_match)


def _edges(since: datetime, until: datetime, size: Size, zone: ZoneInfo) -> Iterator[datetime]:
    """Yield the borders of the buckets in UTC, in order, from `since` to `until`."""
    edge = since
    while edge < until:
        yield edge
        edge = until if size == "none" else min(_next_edge(edge, size, zone), until)
    yield until


def _next_edge(after: datetime, size: Size, zone: ZoneInfo) -> datetime:
    """Return the first hour, midnight, Monday or first of a month after a moment, on the clock of a zone."""
    local = after.astimezone(zone)
    if size == "hour":  # in elapsed time: an hour that the clock repeats is two buckets
        if not (local.minute or local.second or local.microsecond):
            return after + _HOUR
        return after + _HOUR - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    day = local.date()
    while True:
        if size == "day":
            day += timedelta(days=1)
        elif size == "week":
            day += timedelta(days=7 - day.weekday())
        else:
            day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        edge = datetime.combine(day, clock_time(), zone).astimezone(UTC)
        if edge > after:  # a midnight that the clock jumps over is the instant of the jump; one day is then empty
            return edge
