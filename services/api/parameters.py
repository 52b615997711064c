"""The parameters of queries: what may be asked for, and the refusal of everything else."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from services.api.problems import NOT_VALID, ProblemError, refused
from shared.events import Name, Status
from shared.schedules import EARLIEST, LATEST

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _moment(text: object) -> datetime:
    if not isinstance(text, str) or not _RFC_3339.fullmatch(text):
        raise ValueError("write a time as in 2026-10-03T07:00:00Z or 2026-10-03T09:00:00%2B02:00 (a bare + in a URL means a space)")
    try:
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.upper())).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"no such time: {error}") from None
    if not EARLIEST <= moment < LATEST:
        raise ValueError(f"outside of the years {EARLIEST.year} to {LATEST.year - 1}")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
"""A time as RFC 3339 writes it, with its offset, in UTC once it is parsed."""


def text_of(moment: datetime) -> str:
    """Return a time in UTC as answers write it: to the microsecond."""
    return f"{moment.isoformat(timespec='microseconds').removesuffix('+00:00')}Z"


class Query(BaseModel):
    """The base of the parameters of a query."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


Line = Annotated[
    Name | Literal[""] | None,
    Field(description="Only results of this line of a site; empty, of lines without a name.", examples=["lte"]),
]


class Origin(Query):
    """Where results come from."""

    site: Annotated[Name | None, Field(description="Only results of this site.", examples=["home"])] = None
    schedule: Annotated[Name | None, Field(description="Only results of this schedule.", examples=["hourly"])] = None
    engine: Annotated[Name | None, Field(description="Only results of this engine.", examples=["speedtest"])] = None


class Newest(Origin):
    """Which results one is the newest of."""

    line: Line = None
    status: Annotated[Status | None, Field(description="Only results that ended like this.", examples=["succeeded"])] = None


class Wanted(Newest):
    """Which results are wanted."""

    since: Annotated[
        Moment | None, Field(alias="from", description="Only runs due at this time or later.", examples=["2026-10-01T00:00:00Z"])
    ] = None
    until: Annotated[Moment | None, Field(alias="to", description="Only runs due before this time.", examples=["2026-11-01T00:00:00Z"])] = (
        None
    )

    @field_validator("until")
    @classmethod
    def _is_later(cls, until: datetime | None, info: ValidationInfo) -> datetime | None:
        if until and (since := info.data.get("since")) and since >= until:
            raise ValueError("must be after `from`")
        return until


async def known_parameters(request: Request) -> None:
    """Refuse parameters that the OpenAPI document does not have: a filter with a typo must not return everything.

    Raises: ProblemError 422, also when one is given twice.
    """
    path = getattr(request.scope.get("route"), "path", "")
    operation = request.app.openapi()["paths"].get(path, {}).get(request.method.lower())
    if operation is None:
        return
    known = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
    given = [name for name, _ in request.query_params.multi_items()]
    strangers = [(name, f"no such parameter; there is {', '.join(sorted(known)) or 'none'}") for name in given if name not in known]
    if strangers:
        raise ProblemError(422, NOT_VALID, strangers)
    for name in known:
        if given.count(name) > 1:
            raise refused(name, "given more than once")
