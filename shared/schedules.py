"""What a schedule is: the value under its name in the KV bucket, and the body of the API's requests."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints

from shared.events import Name

YEAR_S = 366 * 24 * 3600


def _five_fields(expression: str) -> str:
    if len(expression.split()) != 5:
        raise ValueError("a cron expression has five fields: minute, hour, day of month, month, day of week")
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"no cron expression that ever comes due: {error or expression}") from None
    return expression


@lru_cache(maxsize=1024)
def _known_zone(zone: str) -> str:
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; odd paths give the others
        raise ValueError(f"no such time zone: {zone!r}; use an IANA name such as Europe/Berlin or UTC") from None
    return zone


def _no_text(seconds: object) -> object:
    """Refuse what is only read as a number by courtesy: `"60"`, `true`."""
    if isinstance(seconds, str | bytes | bool):
        raise ValueError("must be a number of seconds")  # noqa: TRY004 - pydantic turns a ValueError into its own
    return seconds


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Strict):
    """Every so many seconds of elapsed time, whatever clocks on walls do."""

    kind: Literal["interval"] = "interval"
    every_s: Annotated[int, Field(ge=1, le=YEAR_S), BeforeValidator(_no_text)]
    phase_s: Annotated[int, Field(ge=0, le=YEAR_S), BeforeValidator(_no_text)] | None = None
    """Seconds after a multiple of `every_s` since 1970 (UTC). None spreads by the names of schedule and site."""


class Cron(_Strict):
    """The minutes that a five-field cron expression names, on the clock of a zone."""

    kind: Literal["cron"] = "cron"
    expression: Annotated[str, StringConstraints(max_length=200), AfterValidator(_five_fields)]
    zone: Annotated[str, StringConstraints(max_length=64), AfterValidator(_known_zone)] = "UTC"


Timing = Annotated[Interval | Cron, Field(discriminator="kind")]


class ScheduleSpec(_Strict):
    """What a person decides about a schedule."""

    engine: Name = "speedtest"
    sites: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1_000)] = ("home",)
    """One tick per site and instant."""
    timing: Timing
    enabled: StrictBool = True
    """False pauses: instants while paused are not due, and are not caught up."""
    options: dict[str, Any] = {}
    """For the engine, which validates them."""
    start_within_s: Annotated[int, Field(ge=1, le=86_400), BeforeValidator(_no_text)] = 3_600
    """A run that nobody could start this long after it was due (or by the next instant) ends as `missed`."""


class Schedule(ScheduleSpec):
    """A schedule as it is stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # stored: an older reader lives with a newer writer

    name: Name
    active_since: AwareDatetime
    """The last time that it began to apply: created, resumed, or its timing or sites changed. Nothing earlier is due."""
