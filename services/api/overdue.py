"""From when on a result is missing: pure functions of the schedules and the time."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from heapq import nlargest
from itertools import chain, takewhile

from shared.due import instants
from shared.schedules import Cron, Schedule

RUNS = 3
"""So many runs in a row without a result are one too many."""


def awaited_since(schedules: Iterable[Schedule], now: datetime) -> dict[tuple[str, str], datetime]:
    """Return, by site and engine, when the last run but two was due: the newest result should be younger than that.

    Instants rather than a period, because a cron expression such as "every hour of a working day" has none. Sites and
    engines with fewer than three due runs since their schedules began to apply are left out.
    """
    due: dict[tuple[str, str], list[datetime]] = {}
    for schedule in schedules:
        if not schedule.enabled:
            continue
        same_everywhere = _last_due(schedule, schedule.sites[0], now) if isinstance(schedule.timing, Cron) else None
        for site in schedule.sites:
            found = due.setdefault((site, schedule.engine), [])
            found[:] = nlargest(RUNS, chain(found, same_everywhere or _last_due(schedule, site, now)))
    return {line: found[-1] for line, found in due.items() if len(found) == RUNS}


def _last_due(schedule: Schedule, site: str, now: datetime) -> list[datetime]:
    """Return the last instants that were due, at most three: looking back ever further until they are found."""
    back = timedelta(minutes=RUNS) if isinstance(schedule.timing, Cron) else timedelta(seconds=RUNS * schedule.timing.every_s)
    while True:
        found = list(takewhile(lambda instant: instant <= now, instants(schedule, site, now - back)))
        if len(found) >= RUNS or now - back < schedule.active_since:
            return found[-RUNS:]
        back *= 4
