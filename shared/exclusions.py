"""Times in which nothing is due.

They are looked at for every instant, so they are worked out in pieces of two weeks, with those that meet or overlap as one, and
a moment is found by bisection: fifty exclusions take as long as one.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from shared.schedules import DAYS, EARLIEST, LATEST, Exclusion, Period, Weekly

_PAGE = timedelta(days=14)
_A_DAY = timedelta(days=1)
_MANY_PAGES = 27
"""More than a year: what days of the week have excluded for so long, through every change of the clocks, they exclude for ever."""

Stretch = tuple[datetime, datetime]
"""The beginning (inclusive) and the end (exclusive)."""


class Calendar:
    """What some exclusions exclude together."""

    def __init__(self, exclusions: tuple[Exclusion, ...]) -> None:
        self._periods = _merged((each.since, each.until) for each in exclusions if isinstance(each, Period))
        self._weekly = tuple(dict.fromkeys(each for each in exclusions if isinstance(each, Weekly)))

    def begin_of(self, moment: datetime) -> datetime | None:
        """Return from when on it has been excluded up to a moment, or a later time from when on; None when the moment is not excluded."""
        found = self._around(moment)
        return found[0] if found else None

    def end_of(self, moment: datetime) -> datetime | None:
        """Return the end of what is excluded around a moment without a break, or None when the moment is not excluded."""
        end, pages = None, 0
        while found := self._around(end or moment):
            end = found[1]
            pages = pages + 1 if end - found[0] == _PAGE else 0
            if pages >= _MANY_PAGES:
                return LATEST
        return end

    def _around(self, moment: datetime) -> Stretch | None:
        return _containing(self._periods, moment) or (
            _containing(_page(self, (moment - EARLIEST) // _PAGE), moment) if self._weekly else None
        )

    def stretches(self, start: datetime, end: datetime) -> Iterator[Stretch]:
        """Yield what is excluded by days of the week between two moments, in no order."""
        for each in self._weekly:
            zone = ZoneInfo(each.zone)
            first, last = time.fromisoformat(each.start), time.fromisoformat(each.end)
            day = start.astimezone(zone).date() - _A_DAY  # one that began the day before may go past midnight
            while day <= end.astimezone(zone).date():
                if DAYS[day.weekday()] in each.days:
                    begins = datetime.combine(day, first, zone).astimezone(UTC)
                    ends = datetime.combine(day if last > first else day + _A_DAY, last, zone).astimezone(UTC)
                    yield max(begins, start), min(ends, end)
                day += _A_DAY


@lru_cache(maxsize=1_024)
def calendar(exclusions: tuple[Exclusion, ...]) -> Calendar:
    """Return the calendar of some exclusions, the same one for all that ask."""
    return Calendar(exclusions)


@lru_cache(maxsize=512)
def _page(known: Calendar, number: int) -> tuple[Stretch, ...]:
    start = EARLIEST + number * _PAGE
    return _merged(known.stretches(start, start + _PAGE))


def _merged(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    found: list[Stretch] = []
    for begins, ends in sorted(each for each in stretches if each[0] < each[1]):
        if found and begins <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], ends))
        else:
            found.append((begins, ends))
    return tuple(found)


def _containing(stretches: tuple[Stretch, ...], moment: datetime) -> Stretch | None:
    place = bisect_right(stretches, moment, key=_begin) - 1
    return stretches[place] if place >= 0 and moment < stretches[place][1] else None


def _begin(stretch: Stretch) -> datetime:
    return stretch[0]
