"""The bodies of requests: what shared/ says of a schedule, and the refusal of what others could not read."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticSerializationError, from_json, to_json

from shared.events import Name
from shared.schedules import FallbackSpec, ScheduleSpec


def _readable(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON cannot say: Python reads NaN, halves of surrogate pairs and any depth, other readers do not."""
    try:
        json.dumps(options, allow_nan=False)
        from_json(to_json(options))
    except (ValueError, RecursionError, PydanticSerializationError):
        raise ValueError("holds what JSON cannot: a number that is none, half a surrogate pair, or more than 200 levels") from None
    return options


Options = Annotated[dict[str, Any], AfterValidator(_readable), Field(description="For the engine, which validates them.")]

SPEC: dict[str, Any] = {
    "engine": "speedtest",
    "options": {},
    "fallback": {"engine": "noop", "options": {}},
    "sites": ["home"],
    "line": None,
    "labels": [],
    "timing": {"kind": "cron", "expression": "24 * * * *", "zone": "Europe/Berlin", "gap": "next", "fold": "first"},
    "valid_from": None,
    "valid_until": None,
    "max_runs": None,
    "exclusions": [{"kind": "weekly", "days": ["mon", "fri"], "start": "09:00", "end": "11:30", "zone": "Europe/Berlin"}],
    "spread_s": 300,
    "jitter_s": 30,
    "enabled": True,
    "catch_up": "latest",
    "catch_up_within_s": 86400,
    "overlap": "queue_all",
    "priority": 5,
    "start_within_s": 3600,
}
"""An example, with every field."""


class ScheduleBody(ScheduleSpec):
    """What a person decides about a schedule; unknown fields are refused."""

    model_config = ConfigDict(json_schema_extra={"examples": [SPEC]})

    options: Options = {}  # noqa: RUF012 - pydantic copies it

    @field_validator("fallback")
    @classmethod
    def _fallback_is_readable(cls, fallback: FallbackSpec | None) -> FallbackSpec | None:
        if fallback:
            _readable(fallback.options)
        return fallback


class NewSchedule(ScheduleBody):
    """A schedule and its name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "hourly", **SPEC}]})

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
    line: Annotated[
        Name | None, Field(description="One of the lines of that site; null is the one without a name, `any` whichever is free first.")
    ] = None
    options: Options = {}


def _form(body: Any) -> Literal["of a schedule", "ad hoc"]:
    return "ad hoc" if isinstance(body, dict) and "engine" in body and "schedule" not in body else "of a schedule"


RunBody = Annotated[
    Annotated[ScheduledRun, Tag("of a schedule")] | Annotated[AdHocRun, Tag("ad hoc")],
    Discriminator(_form),
]
