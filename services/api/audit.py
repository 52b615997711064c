"""The audit: whether every instant that was due has exactly one row."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import BaseModel, ConfigDict, Field

from services.api.models import EXAMPLE
from services.api.parameters import Moment, Query
from services.api.parts import TheDatabase
from services.api.problems import documented, refused
from shared import audit
from shared.errors import TooMuch
from shared.events import Name, Trigger

router = APIRouter(prefix="/api/v1", tags=["results"])

PERIOD = timedelta(days=1)
LONGEST = timedelta(days=31)
MOST = 1_000_000
"""So many runs are looked at in one answer at most: it takes seconds."""


class AuditQuery(Query):
    """What is looked at."""

    since: Annotated[
        Moment | None, Field(alias="from", description="Begin here; a day before the end by default.", examples=["2026-10-01T00:00:00Z"])
    ] = None
    until: Annotated[
        Moment | None, Field(alias="to", description="End before this time; now by default.", examples=["2026-10-02T00:00:00Z"])
    ] = None
    site: Annotated[Name | None, Field(description="Only this site.", examples=["home"])] = None
    schedule: Annotated[Name | None, Field(description="Only this schedule.", examples=["hourly"])] = None


_RUN = {
    "run_id": EXAMPLE["run_id"],
    "due_at": "2026-10-03T07:24:10.000000Z",
    "site": "home",
    "schedule": "hourly",
    "trigger": "schedule",
}
_CLEAN: dict[str, Any] = {"count": 0, "items": []}


class AuditedRun(BaseModel):
    """A run that something is wrong with."""

    run_id: UUID
    due_at: datetime
    site: str
    schedule: str | None
    trigger: Trigger


class Finding(BaseModel):
    """How many runs there are of a kind, and the first hundred of them."""

    count: int
    items: list[AuditedRun]


class AuditView(BaseModel):
    """What was due in a period, and what became of it. With three counts of 0 every instant has exactly one row."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "from": "2026-10-02T22:00:00.000000Z",
                    "to": "2026-10-03T22:00:00.000000Z",
                    "due": 24,
                    "rows": 23,
                    "open": 0,
                    "missing": {"count": 1, "items": [_RUN]},
                    "duplicated": _CLEAN,
                    "unexpected": _CLEAN,
                }
            ]
        }
    )

    since: Annotated[datetime, Field(alias="from")]
    """What was due before the ledger began is left out."""
    until: Annotated[datetime, Field(alias="to")]
    due: int
    """Instants of schedules and runs that were asked for."""
    rows: int
    open: int
    """Due without a row, where one may still come."""
    missing: Finding
    """Due without a row, and none will come by itself."""
    duplicated: Finding
    """Rows beside the one that an instant has."""
    unexpected: Finding
    """Rows of runs that nobody asked for."""


@router.get("/audit", summary="Audit the results", operation_id="audit_results", responses=documented(422, 503))
async def audited(wanted: Annotated[AuditQuery, InQuery()], database: TheDatabase) -> AuditView:
    """Hold the rows of a period against what was to be, as the schedules were at the time: at most 31 days, a million runs."""
    now = datetime.now(UTC)
    until = wanted.until or now
    since = wanted.since or until - PERIOD
    if since >= until:
        raise refused("from", "must be before `to`")
    if until - since > LONGEST:
        raise refused("from", f"more than {LONGEST.days} days before `to`")
    try:
        async with database.long_read() as connection:
            found = await audit.audit(connection, since, until, now=now, site=wanted.site, schedule=wanted.schedule, at_most=MOST)
    except TooMuch as error:
        raise refused("from", f"{error} since then: ask for a shorter period, or for one schedule") from None
    kinds = {kind: _finding(getattr(found, kind)) for kind in ("missing", "duplicated", "unexpected")}
    return AuditView.model_validate(
        {"from": found.since, "to": found.until, "due": found.due, "rows": found.rows, "open": found.open, **kinds}
    )


def _finding(found: audit.Found) -> dict[str, Any]:
    return {"count": found.count, "items": [vars(run) for run in found.first]}
