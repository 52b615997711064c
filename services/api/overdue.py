"""From when on a result is missing: pure functions of the schedules and the time."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from heapq import nlargest
from itertools import chain

from services.api.newest import Place
from shared.due import latest, same_everywhere
from shared.schedules import Schedule

RUNS = 3
"""So many runs in a row without a result are one too many."""

_FURTHEST, _MOMENT = timedelta(days=366), timedelta(microseconds=1)


def awaited_since(schedules: Iterable[Schedule], now: datetime) -> dict[Place, datetime]:
    """Return, by site, line and engine, when the last run but two was due: the newest result should be younger than that.

    Instants rather than a period, because a cron expression such as "every hour of a working day" has none. Those with fewer
    than three due runs in the last year, or since their schedules began to apply, are left out. Runs that any line may measure
    are awaited of the line `any`.
    """
    due: dict[Place, list[datetime]] = {}
    for schedule in schedules:
        if not schedule.enabled:
            continue
        everywhere = _last_due(schedule, schedule.sites[0], now) if same_everywhere(schedule) else None
        for site in schedule.sites:
            found = due.setdefault((site, schedule.line, schedule.engine), [])
            found[:] = nlargest(RUNS, chain(found, everywhere or _last_due(schedule, site, now)))
    return {place: found[-1] for place, found in due.items() if len(found) == RUNS}


def _last_due(schedule: Schedule, site: str, now: datetime) -> list[datetime]:
    """Return the last instants that were due, at most three, the newest first."""
    found: list[datetime] = []
    while len(found) < RUNS and (instant := latest(schedule, site, now - _FURTHEST, found[-1] - _MOMENT if found else now)):
        found.append(instant)
    return found
