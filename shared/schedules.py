"""What a schedule is: the value under its name in the KV bucket, and the body of the API's requests."""

import contextlib
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice, pairwise
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from shared.errors import reasons
from shared.events import ANY, Fallback, Name, Overlap

YEAR_S = 366 * 24 * 3600
HISTORY = "history"
"""The context in which a schedule of the past is read: it is kept without the options of its engines, which are not judged then."""
RUNS_TO_COUNT = 20_000
"""Where runs must be counted one by one to find the last: at most so many, times sites (if they differ) and exclusions."""
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""No moment of a schedule is before the one, or as late as the other: near the first and the last year there is, arithmetic fails."""


@lru_cache(maxsize=8_192)
def _five_fields(expression: str) -> str:
    if len(expression.split()) != 5:
        raise ValueError("a cron expression has five fields: minute, hour, day of month, month, day of week")
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"no cron expression that ever comes due: {error or expression}") from None
    return expression


_OF_A_MACHINE = {"localtime", "posixrules"}
"""Files beside the zones, which say where a machine is: on another they are another zone, or none."""


@lru_cache(maxsize=1024)
def known_zone(zone: str) -> str:
    """Return a time zone's name.

    Raises: ValueError when there is none of this name.
    """
    with contextlib.suppress(KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; odd paths give the others
        if zone not in _OF_A_MACHINE and ZoneInfo(zone):
            return zone
    raise ValueError(f"no such time zone: {zone!r}; use an IANA name such as Europe/Berlin or UTC")


def _no_text(number: object) -> object:
    """Refuse what is only read as a number by courtesy: `"60"`, `true`."""
    if isinstance(number, str | bytes | bool):
        raise ValueError("must be a whole number")  # noqa: TRY004 - pydantic turns a ValueError into its own
    return number


def _whole_second(moment: datetime) -> datetime:
    """Refuse fractions: the instant is part of the name of its tick, in seconds."""
    if moment.microsecond:
        raise ValueError("must be a whole second")
    return moment


def _of_these_years(moment: datetime) -> datetime:
    if not EARLIEST <= moment < LATEST:
        raise ValueError(f"outside of the years {EARLIEST.year} to {LATEST.year - 1}")
    return moment


Seconds = BeforeValidator(_no_text)
Moment = Annotated[AwareDatetime, AfterValidator(_of_these_years)]
Zone = Annotated[str, StringConstraints(max_length=64), AfterValidator(known_zone)]
ClockTime = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Strict):
    """Every so many seconds of elapsed time, whatever clocks on walls do."""

    kind: Literal["interval"] = "interval"
    every_s: Annotated[int, Field(ge=1, le=YEAR_S), Seconds]
    phase_s: Annotated[int, Field(ge=0, le=YEAR_S), Seconds] | None = None
    """Seconds after a multiple of `every_s` since 1970 (UTC). None spreads by the names of schedule and site."""


class Cron(_Strict):
    """The minutes that a five-field cron expression names, on the clock of a zone.

    Where the minute or the hour begins with `*` it runs by elapsed time: clocks that change neither stop nor repeat it. A fixed
    time follows `gap` and `fold`.
    """

    kind: Literal["cron"] = "cron"
    expression: Annotated[str, StringConstraints(max_length=200), AfterValidator(_five_fields)]
    zone: Zone = "UTC"
    gap: Literal["skip", "next"] = "next"
    """A time that the clock leaps over in spring: not at all that day, or as soon as the clock has leapt."""
    fold: Literal["first", "both"] = "first"
    """A time that the clock shows twice in autumn: the first time only, or both times."""


class Once(_Strict):
    """One instant."""

    kind: Literal["once"] = "once"
    at: Annotated[Moment, AfterValidator(_whole_second)]


class Manual(_Strict):
    """Never by itself: only when somebody asks for it."""

    kind: Literal["manual"] = "manual"


class Random(_Strict):
    """At random, so that nothing else that is periodic stays in step with it: the gaps are exponentially distributed.

    Values outside of the bounds are moved to them. The gaps are drawn from the names of schedule and site: every scheduler, and
    the ledger later, finds the same instants.
    """

    kind: Literal["random"] = "random"
    mean_s: Annotated[int, Field(ge=10, le=YEAR_S), Seconds]
    min_s: Annotated[int, Field(ge=1, le=YEAR_S), Seconds] | None = None
    """The shortest gap. None is a tenth of the mean."""
    max_s: Annotated[int, Field(ge=2, le=YEAR_S), Seconds] | None = None
    """The longest gap. None is two and a half times the mean."""

    def bounds_s(self) -> tuple[int, int]:
        """Return the shortest and the longest gap in seconds."""
        shortest = max(1, self.mean_s // 10) if self.min_s is None else self.min_s
        return shortest, self.mean_s * 5 // 2 if self.max_s is None else self.max_s

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        shortest, longest = self.bounds_s()
        if not shortest <= self.mean_s <= longest <= 10 * self.mean_s:
            raise ValueError("the bounds must lie around mean_s: min_s at most the mean, max_s from the mean to ten times the mean")
        if longest < 2 * shortest:
            raise ValueError("max_s must be at least twice min_s; gaps that are all alike are an interval")
        return self


Timing = Annotated[Interval | Cron | Once | Manual | Random, Field(discriminator="kind")]

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Weekly(_Strict):
    """A part of some days of the week in which nothing is due, on the clock of a zone."""

    kind: Literal["weekly"] = "weekly"
    days: Annotated[tuple[Day, ...], Field(min_length=1, max_length=7)] = DAYS
    """The days on which it begins."""
    start: ClockTime
    """`HH:MM`, the first minute that is excluded."""
    end: ClockTime
    """`HH:MM`, the first minute that is not; on the next day when it is not after `start`."""
    zone: Zone = "UTC"


class Period(_Strict):
    """A time from an instant (inclusive) to another (exclusive) in which nothing is due."""

    kind: Literal["period"] = "period"
    since: Annotated[Moment, Field(alias="from")]
    until: Annotated[Moment, Field(alias="to")]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.until <= self.since:
            raise ValueError("`to` must be after `from`")
        return self


Exclusion = Annotated[Weekly | Period, Field(discriminator="kind")]


def shortest_gap_s(timing: Interval | Cron | Once | Manual | Random) -> int | None:
    """Return the shortest time between two instants in seconds, None where there are no two; of a cron expression as the clock shows it."""
    match timing:
        case Interval():
            return timing.every_s
        case Random():
            return timing.bounds_s()[0]
        case Cron():
            return _shortest_gap_s(timing.expression)
        case _:
            return None


@lru_cache(maxsize=1024)
def _shortest_gap_s(expression: str) -> int | None:
    found = list(islice(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)), 200))
    return min((int((other - one).total_seconds()) for one, other in pairwise(found)), default=None)


NDT7_MEAN_S, NDT7_SHORTEST_S = 21_600, 2_160
"""M-Lab asks automated clients to wait at random between tests of NDT7, six hours on average and never under 36 minutes."""


def _too_often(engine: str, options: dict[str, Any], timing: Interval | Cron | Once | Manual | Random) -> str | None:
    """Return why an engine may not run as often as a schedule has it; a server of one's own has no such rule."""
    shortest = shortest_gap_s(timing)
    if engine != "ndt7" or options.get("server") or shortest is None:
        return None
    if isinstance(timing, Random) and timing.mean_s >= NDT7_MEAN_S and shortest >= NDT7_SHORTEST_S:
        return None
    if not isinstance(timing, Random) and shortest >= NDT7_MEAN_S:
        return None
    return (
        "engine ndt7 would run too often: M-Lab asks for six hours between tests on average, at random and never under 36 minutes. "
        "Use the timing random with mean_s 21600 (--random 6h), or the option server for an ndt-server of your own"
    )


def differs_by_site(timing: Interval | Cron | Once | Manual | Random) -> bool:
    """Return whether it is due at other instants at each site."""
    return isinstance(timing, Random) or (isinstance(timing, Interval) and timing.phase_s is None)


class FallbackSpec(Fallback):
    """The engine that measures when the first one failed; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


CatchUp = Literal["none", "latest", "all"]


class ScheduleSpec(_Strict):
    """What a person decides about a schedule."""

    engine: Name = "speedtest"
    options: dict[str, Any] = {}
    """For the engine, which validates them."""
    fallback: FallbackSpec | None = None
    """What to run instead when the engine failed, within the same run."""
    sites: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1_000)] = ("home",)
    """One tick per site and instant."""
    line: Name | None = None
    """The line of those sites to measure, as its runners call it (`REFRESHER_LINE`); None is the one without a name,
    `any` whichever of a site is free first."""
    labels: Annotated[tuple[Name, ...], Field(max_length=20)] = ()
    """What the runner must have among its labels (`REFRESHER_LABELS`)."""
    timing: Timing
    valid_from: Moment | None = None
    """Nothing is due before."""
    valid_until: Moment | None = None
    """Nothing is due from here on."""
    max_runs: Annotated[int, Field(ge=1, le=10_000), Seconds] | None = None
    """At each site only so many instants are due, counted from `active_since`."""
    exclusions: Annotated[tuple[Exclusion, ...], Field(max_length=50)] = ()
    """When nothing is due."""
    spread_s: Annotated[int, Field(ge=0, le=86_400), Seconds] = 0
    """Each site starts so many seconds after the instant at most, always the same: a fleet does not test at once."""
    jitter_s: Annotated[int, Field(ge=0, le=86_400), Seconds] = 0
    """Each run starts so many seconds later still at most, each time others."""
    enabled: StrictBool = True
    """False pauses: instants while paused are not due, and are not caught up."""
    catch_up: CatchUp = "latest"
    """Which of the instants that passed while no scheduler was alive are run afterwards. The others end as `missed`."""
    catch_up_within_s: Annotated[int, Field(ge=0, le=86_400), Seconds] = 86_400
    """How old an instant may be to be caught up."""
    overlap: Overlap = "queue_all"
    """What becomes of a run whose line is busy."""
    priority: Annotated[int, Field(ge=0, le=9), Seconds] = 5
    """Of the runs that wait for a line, one of the highest priority goes first."""
    start_within_s: Annotated[int, Field(ge=1, le=86_400), Seconds] = 3_600
    """A run that nobody could start this long after it was to start (or by the next instant) ends as `missed`."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.valid_from and self.valid_until and self.valid_until <= self.valid_from:
            raise ValueError("valid_until must be after valid_from")
        shortest = shortest_gap_s(self.timing)
        if shortest is not None and self.jitter_s and self.jitter_s >= shortest:
            raise ValueError(f"jitter_s must be less than the shortest time between two runs, {shortest} s: they would overtake each other")
        if self.line == ANY and self.overlap != "queue_all":
            raise ValueError(
                f"with line `any` overlap must be queue_all, not {self.overlap}: no line sees what the others of its site measure, "
                "so none can say that all are busy; a run for any line waits until one of them is free"
            )
        if shortest is not None and self.spread_s > shortest:
            raise ValueError(f"spread_s must be at most the shortest time between two runs, {shortest} s: a site's runs would queue up")
        self._can_be_counted()
        if self.fallback and self.fallback.engine == self.engine and self.fallback.options == self.options:
            raise ValueError("the fallback is the same engine with the same options: it would only repeat the failure")
        return self

    @model_validator(mode="after")
    def _is_not_too_often(self, info: ValidationInfo) -> Self:
        for each in () if info.context == HISTORY else (self, self.fallback):
            if each and (reason := _too_often(each.engine, each.options, self.timing)):
                raise ValueError(reason)
        return self

    def _can_be_counted(self) -> None:
        """Refuse so many runs that to count them takes seconds; those at an interval alone are not counted but calculated."""
        if self.max_runs is None or not (self.exclusions or isinstance(self.timing, Random)):
            return
        sites = len(set(self.sites)) if differs_by_site(self.timing) else 1
        most = RUNS_TO_COUNT // (sites * max(1, len(self.exclusions)))
        if self.max_runs > most:
            raise ValueError(f"max_runs must be at most {most} with so many sites and exclusions: use valid_until, or several schedules")


class Schedule(ScheduleSpec):
    """A schedule as it is stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # stored: an older reader lives with a newer writer

    name: Name
    active_since: Moment
    """The last time that it began to apply: created, resumed, or one of WHEN changed. Nothing earlier is due."""


WHEN = (
    *("sites", "timing", "valid_from", "valid_until", "max_runs", "exclusions"),
    *("spread_s", "jitter_s", "catch_up", "catch_up_within_s"),
)
"""The fields that say when a schedule is due, when its runs start and what is caught up: with any of them changed it applies anew,
from that moment on. What had passed by then under other rules may be measured and forgotten."""

LATE_S = 10
"""A run that starts more than so many seconds late is one that is caught up: no scheduler was there in time."""


def read(name: str, value: bytes) -> Schedule:
    """Return the schedule that is stored under a name.

    Raises: ValueError with the reasons when the value is no schedule, or is that of another name.
    """
    try:
        schedule = Schedule.model_validate_json(value)
    except ValidationError as error:
        raise ValueError(reasons(error)) from None
    if schedule.name != name:
        raise ValueError(f"it calls itself {schedule.name}")
    return schedule
