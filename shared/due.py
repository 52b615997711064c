"""The instants at which a schedule is due: pure functions, no clock of their own.

An interval counts elapsed time from the epoch, so it never drifts and knows no daylight saving. A cron expression
follows the clock of its zone as Debian's cron does (cronsim): at the spring change a fixed time inside the gap runs
right after it, at the autumn change a fixed time runs once, and an expression with a `*` hour or minute runs by elapsed time.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from zoneinfo import ZoneInfo

from cronsim import CronSim

from shared.schedules import Cron, Interval, Schedule


def instants(schedule: Schedule, site: str, after: datetime) -> Iterator[datetime]:
    """Yield every due instant of a schedule at a site strictly after `after`, in UTC, in order, for ever.

    Instants before `active_since` are not due. A cron that never comes again ends the iteration.
    """
    after = max(after, schedule.active_since - timedelta(microseconds=1))
    if isinstance(schedule.timing, Interval):
        return _interval(schedule.timing, f"{schedule.name}:{site}", after)
    return _cron(schedule.timing, after)


def following(schedule: Schedule, site: str, after: datetime) -> datetime | None:
    """Return the first due instant strictly after `after`, or None when there is none."""
    return next(instants(schedule, site, after), None)


def latest(schedule: Schedule, site: str, after: datetime, until: datetime) -> datetime | None:
    """Return the last due instant in (after, until], or None when there is none."""
    after = max(after, schedule.active_since - timedelta(microseconds=1))
    if isinstance(schedule.timing, Interval):
        every, phase = schedule.timing.every_s, _phase_s(schedule.timing, f"{schedule.name}:{site}")
        candidate = _at(_floor(until, every, phase))
        return candidate if candidate > after else None
    last = None
    for instant in _cron(schedule.timing, after):
        if instant > until:
            break
        last = instant
    return last


def _phase_s(timing: Interval, key: str) -> int:
    """Return the phase in seconds; a spread one lies in the middle 80 % of the period, clear of the top of the hour."""
    if timing.phase_s is not None:
        return timing.phase_s % timing.every_s
    share = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) / 2**64
    return int(timing.every_s * (0.1 + 0.8 * share))


def _floor(moment: datetime, every: int, phase: int) -> int:
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return (seconds - phase) // every * every + phase


def _interval(timing: Interval, key: str, after: datetime) -> Iterator[datetime]:
    due = _floor(after, timing.every_s, _phase_s(timing, key))
    while True:
        due += timing.every_s
        yield _at(due)


def _cron(timing: Cron, after: datetime) -> Iterator[datetime]:
    previous = after
    for local in CronSim(timing.expression, after.astimezone(ZoneInfo(timing.zone))):
        instant = local.astimezone(UTC)
        if instant > previous:  # a fold may be named twice: an instant is due once
            yield instant
            previous = instant


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _at(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)
