"""The bodies of requests: what shared/ says of a schedule, and the refusal of what others could not read."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticSerializationError, from_json, to_json

from shared.events import Name
from shared.schedules import ScheduleSpec


def _readable(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON cannot say: Python reads NaN, halves of surrogate pairs and any depth, other readers do not."""
    try:
        json.dumps(options, allow_nan=False)
        from_json(to_json(options))
    except (ValueError, RecursionError, PydanticSerializationError):
        raise ValueError("holds what JSON cannot: a number that is none, half a surrogate pair, or more than 200 levels") from None
    return options


Options = Annotated[dict[str, Any], AfterValidator(_readable), Field(description="For the engine, which validates them.")]

_SPEC: dict[str, Any] = {
    "engine": "speedtest",
    "sites": ["home"],
    "timing": {"kind": "cron", "expression": "24 * * * *", "zone": "Europe/Berlin"},
    "enabled": True,
    "options": {},
    "start_within_s": 3600,
}


class ScheduleBody(ScheduleSpec):
    """What a person decides about a schedule; unknown fields are refused."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SPEC]})

    options: Options = {}  # noqa: RUF012 - pydantic copies it


class NewSchedule(ScheduleBody):
    """A schedule and its name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "hourly", **_SPEC}]})

    name: Name


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduledRun(_Body):
    """Run a schedule now, as it is, be it paused or not."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"schedule": "hourly"}]})

    schedule: Name
    site: Annotated[Name | None, Field(description="One of its sites; needed when it has several.")] = None


class AdHocRun(_Body):
    """Run an engine now, without a schedule."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"engine": "speedtest", "site": "home", "options": {}}]})

    engine: Name
    site: Name = "home"
    options: Options = {}


def _form(body: Any) -> Literal["of a schedule", "ad hoc"]:
    return "ad hoc" if isinstance(body, dict) and "engine" in body and "schedule" not in body else "of a schedule"


RunBody = Annotated[
    Annotated[ScheduledRun, Tag("of a schedule")] | Annotated[AdHocRun, Tag("ad hoc")],
    Discriminator(_form),
]
