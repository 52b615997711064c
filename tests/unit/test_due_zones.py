"""Fixed times through every change of the clock in five zones over ten years, held against a calculation of its own.

That one knows nothing of time zones' rules: it looks at what the clock shows in every minute of the days around a change.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import takewhile
from typing import Literal
from zoneinfo import ZoneInfo

import pytest

from shared.due import instants
from shared.schedules import Cron, Schedule

ZONES = ("Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Africa/Cairo")
YEARS = (2024, 2034)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
TIMES = [(hour, minute) for hour in (0, 1, 2, 3, 4) for minute in (0, 15, 30, 59)]


@lru_cache
def changes(zone: str) -> list[datetime]:
    """Return every hour (UTC) of the ten years in which a zone's clock is changed."""
    clock, hour = ZoneInfo(zone), datetime(YEARS[0], 1, 1, tzinfo=UTC)
    found = []
    while hour.year < YEARS[1]:
        following = hour + timedelta(hours=1)
        if hour.astimezone(clock).utcoffset() != following.astimezone(clock).utcoffset():
            found.append(hour)
        hour = following
    return found


@lru_cache
def shown(zone: str, around: datetime) -> dict[date, dict[tuple[int, int], list[datetime]]]:
    """Return, for each whole day around a change, which instants show which time."""
    clock, instant = ZoneInfo(zone), around - 3 * DAY
    days: dict[date, dict[tuple[int, int], list[datetime]]] = defaultdict(lambda: defaultdict(list))
    while instant < around + 3 * DAY:
        wall = instant.astimezone(clock)
        days[wall.date()][wall.hour, wall.minute].append(instant)
        instant += MINUTE
    return {day: days[day] for day in sorted(days)[1:-1]}


def until(end: datetime, found: Iterator[datetime]) -> list[datetime]:
    """Return the instants that are not later."""
    return list(takewhile(lambda instant: instant <= end, found))


def expected(zone: str, around: datetime, time: tuple[int, int], gap: str, fold: str) -> list[datetime]:
    """Return when a run at a time of every day is due, by looking at the clock."""
    found = []
    for times in shown(zone, around).values():
        if time in times:
            found += times[time] if fold == "both" else times[time][:1]
        elif gap == "next":
            found.append(min(instant for other, those in times.items() if other > time for instant in those))
    return sorted(found)


@pytest.mark.parametrize("gap", ["skip", "next"])
@pytest.mark.parametrize("fold", ["first", "both"])
@pytest.mark.parametrize("zone", ZONES)
def test_a_fixed_time_follows_its_policies(zone: str, gap: Literal["skip", "next"], fold: Literal["first", "both"]) -> None:
    """Each time of the night, on each of the days around each change."""
    assert len(changes(zone)) >= 18, "twice a year"
    for change in changes(zone):
        days = shown(zone, change)
        first = min(min(times) for times in days[min(days)].values())
        last = max(max(times) for times in days[max(days)].values())
        for hour, minute in TIMES:
            timing = Cron(expression=f"{minute} {hour} * * *", zone=zone, gap=gap, fold=fold)
            schedule = Schedule(name="s", timing=timing, active_since=first)
            found = until(last, instants(schedule, "home", first - MINUTE))
            assert found == expected(zone, change, (hour, minute), gap, fold), (change, hour, minute)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    ("expression", "minutes"), [("*/15 * * * *", {0, 15, 30, 45}), ("30 * * * *", {30}), ("* 2 * * *", set(range(60)))]
)
def test_a_star_runs_by_elapsed_time(zone: str, expression: str, minutes: set[int]) -> None:
    """Whatever the policies say: whenever the clock shows such a time, and at no other."""
    hours = {2} if expression == "* 2 * * *" else set(range(24))
    for change in changes(zone):
        days = shown(zone, change)
        wanted = sorted(
            instant
            for times in days.values()
            for (hour, minute), those in times.items()
            if minute in minutes and hour in hours
            for instant in those
        )
        schedule = Schedule(name="s", timing=Cron(expression=expression, zone=zone), active_since=datetime(2000, 1, 1, tzinfo=UTC))
        start = min(min(times) for times in days[min(days)].values())
        end = max(max(times) for times in days[max(days)].values())
        found = until(end, instants(schedule, "home", start - timedelta(seconds=1)))
        assert found == wanted, change


def test_a_day_that_a_zone_leapt_over() -> None:
    """Samoa had no 30 December 2011: a daily run of that day is due as soon as the clock has leapt, or not at all."""
    around, leap = datetime(2011, 12, 29, 12, tzinfo=UTC), datetime(2011, 12, 30, 10, tzinfo=UTC)
    for gap, extra in (("next", [leap]), ("skip", [])):
        timing = Cron.model_validate({"expression": "0 12 * * *", "zone": "Pacific/Apia", "gap": gap})
        schedule = Schedule(name="s", timing=timing, active_since=around - DAY)
        found = until(around + 2 * DAY, instants(schedule, "home", around - DAY))
        noons = [datetime(2011, 12, 28, 22, tzinfo=UTC), datetime(2011, 12, 29, 22, tzinfo=UTC), datetime(2011, 12, 30, 22, tzinfo=UTC)]
        assert found == sorted(noons + extra)
