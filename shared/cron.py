"""When a cron expression is due on the clock of a zone, through every change of that clock.

cronsim walks the expression over plain clock times, without a zone; the mapping of a clock time to instants, with the policies
for times that do not exist or exist twice, is made here. Instants are kept in pages of six hours, which all schedules with the
same expression share: looking one up again costs a microsecond.
"""

from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from heapq import heappop, heappush
from zoneinfo import ZoneInfo

from cronsim import CronSim

from shared.schedules import Cron

Key = tuple[str, str, str, str]
"""Expression, zone, gap and fold: what instants depend on."""

_PAGE = timedelta(hours=6)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FURTHEST = 50 * 366 * 4
"""Pages in 50 years."""
_LONGEST_CHANGE = timedelta(hours=26)
"""No clock has ever been changed by more: Samoa and Kiribati leapt over a day."""


def key_of(timing: Cron) -> Key:
    """Return what the instants of a timing depend on."""
    return timing.expression, timing.zone, timing.gap, timing.fold


def after(key: Key, moment: datetime) -> datetime | None:
    """Return the first instant strictly after a moment, or None when there is none (within 50 years)."""
    number = (moment - _EPOCH) // _PAGE
    page = _page(key, number)
    place = bisect_right(page, moment)
    return page[place] if place < len(page) else _beyond(key, number)


def before(key: Key, moment: datetime, since: datetime) -> datetime | None:
    """Return the last instant in (since, moment], or None when there is none."""
    number = (moment - _EPOCH) // _PAGE
    page = _page(key, number)
    place = bisect_right(page, moment)
    found = page[place - 1] if place else _back(key, number) if _EPOCH + number * _PAGE > since else None
    return found if found and found > since else None


def instants(key: Key, moment: datetime) -> Iterator[datetime]:
    """Yield every instant strictly after a moment, in order; to walk far is quicker than to look each one up."""
    return _instants(key, moment.astimezone(UTC))


@lru_cache(maxsize=8_192)
def _page(key: Key, number: int) -> tuple[datetime, ...]:
    start = _EPOCH + number * _PAGE
    end = start + _PAGE
    found = []
    for instant in _instants(key, start - timedelta(microseconds=1)):
        if instant >= end:
            break
        found.append(instant)
    return tuple(found)


@lru_cache(maxsize=8_192)
def _beyond(key: Key, number: int) -> datetime | None:
    """Return the first instant after a page."""
    return next(_instants(key, _EPOCH + (number + 1) * _PAGE - timedelta(microseconds=1)), None)


@lru_cache(maxsize=8_192)
def _back(key: Key, number: int) -> datetime | None:
    """Return the last instant before a page, or None when there is none (within 50 years): by leaps back, then by bisection."""
    start = _EPOCH + number * _PAGE

    def has(first: int) -> bool:
        found = _beyond(key, first - 1)
        return found is not None and found < start

    leap = 1
    while not has(number - leap):
        leap *= 2
        if leap > _FURTHEST:
            return None
    low, high = number - leap, number - leap // 2  # from `low` on there is one before the page, from `high` on none
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if has(middle) else (low, middle)
    return _page(key, low)[-1]


def _instants(key: Key, moment: datetime) -> Iterator[datetime]:
    """Yield every instant strictly after a moment, in order."""
    expression, zone_name, gap, fold = key
    zone = ZoneInfo(zone_name)
    by_elapsed_time = any(field.startswith("*") for field in expression.split()[:2])
    waiting: list[datetime] = []  # the second times of what the clock shows twice
    last = moment
    for wall in CronSim(expression, _earliest_wall(moment, zone)):
        first, *second = _occurrences(wall, zone)
        if wall_of(first, zone) != wall:
            if by_elapsed_time or gap == "skip":
                continue
            first = _end_of_gap(wall, zone)
        elif second and (by_elapsed_time or fold == "both"):
            heappush(waiting, second[0])
        heappush(waiting, first)
        while waiting and waiting[0] <= first:
            instant = heappop(waiting)
            if instant > last:
                yield instant
                last = instant
    yield from sorted(instant for instant in waiting if instant > last)


def wall_of(instant: datetime, zone: ZoneInfo) -> datetime:
    """Return what the clock of a zone shows, without a zone."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def _earliest_wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return a clock time that every later instant is shown after, even where the clock is about to be set back."""
    offsets = (each.astimezone(zone).utcoffset() or timedelta() for each in (moment, moment + _LONGEST_CHANGE))
    return moment.replace(tzinfo=None) + min(offsets)


def _occurrences(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return the instants at which a clock shows a time: one, or two; for a time that it leaps over, one in its place (PEP 495)."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return [first, second] if second > first else [first]


def _end_of_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant at which the clock leaps over a time."""
    low, high = sorted(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    offset = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)
