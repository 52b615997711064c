"""The instants at which a schedule is due: pure functions, no clock of their own.

An interval counts elapsed time from the epoch, so it never drifts and knows no daylight saving. A cron expression follows the
clock of its zone (`shared.cron`), and random gaps are drawn from names (`shared.randomly`): whoever asks, at whatever time,
finds the same instants.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from shared import cron, randomly
from shared.exclusions import Calendar, calendar
from shared.schedules import LATE_S, LATEST, Cron, Interval, Manual, Once, Random, Schedule, differs_by_site

BROKEN = (ArithmeticError, LookupError, ValueError)
"""What arithmetic with times and zones raises. No schedule that is valid does that; one that does must not harm the others."""


def instants(schedule: Schedule, site: str, after: datetime) -> Iterator[datetime]:
    """Yield every due instant of a schedule at a site strictly after `after`, in UTC, in order.

    Instants before `active_since` or outside of its validity are not due, and none from the year 2200 on. It ends when no other
    one will ever be due.
    """
    rule = _rule(schedule, site)
    while (instant := _following(rule, after)) and not ((last := _last(rule, instant)) and instant > last):
        yield instant
        after = instant


def following(schedule: Schedule, site: str, after: datetime) -> datetime | None:
    """Return the first due instant strictly after `after`, or None when there is none."""
    return next(instants(schedule, site, after), None)


def latest(schedule: Schedule, site: str, after: datetime, until: datetime) -> datetime | None:
    """Return the last due instant in (after, until], or None when there is none."""
    rule = _rule(schedule, site)
    after = max(after, rule.since)
    moment = min(until, rule.until)
    moment = min(moment, _last(rule, moment) or moment)
    while moment > after and (instant := _before(rule, moment, after)):
        begin = rule.excluded and rule.excluded.begin_of(instant)
        if not begin:
            return instant
        moment = begin - _MOMENT
    return None


def last_started(schedule: Schedule, site: str, after: datetime, now: datetime) -> datetime | None:
    """Return the last instant in (after, now] whose run was to have started by now, or None when there is none."""
    until = now
    while instant := latest(schedule, site, after, until):
        if start_of(schedule, site, instant) <= now:
            return instant
        until = instant - _MOMENT
    return None


def start_of(schedule: Schedule, site: str, due_at: datetime) -> datetime:
    """Return when the run of an instant is to start: the instant, the spread of the site, and the jitter of the run."""
    if not (schedule.spread_s or schedule.jitter_s):
        return due_at
    spread_s = _share(f"{schedule.name}:{site}") * schedule.spread_s
    jitter_s = _share(f"{schedule.name}:{site}:{int(due_at.timestamp())}") * schedule.jitter_s
    return due_at + timedelta(milliseconds=int((spread_s + jitter_s) * 1000))


def looked_back(schedule: Schedule) -> timedelta:
    """Return how old an instant may be for a scheduler to publish it: its run starts with spread and jitter, and is then caught up."""
    within_s = LATE_S if schedule.catch_up == "none" else max(schedule.catch_up_within_s, LATE_S)
    return timedelta(seconds=within_s + schedule.spread_s + schedule.jitter_s)


def same_everywhere(schedule: Schedule) -> bool:
    """Return whether an instant is due, and starts, at all sites at once."""
    return not (schedule.spread_s or schedule.jitter_s or differs_by_site(schedule.timing))


_MOMENT, _SECOND = timedelta(microseconds=1), timedelta(seconds=1)
_EXCLUDED_IN_A_ROW = 1_000
"""So often is an instant looked for after an exclusion; then everything is excluded, and none will ever be due."""
_WALKED = timedelta(hours=6)
"""To the end of a longer exclusion it is leapt, through a shorter one it is walked: to begin anew takes as long as some steps."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Rule(NamedTuple):
    """What the instants of a schedule at a site depend on: the same for all sites where they are due at once.

    One is made for every question, so it is of the kind that is made quickest.
    """

    key: str
    timing: Interval | Cron | Once | Manual | Random
    since: datetime
    """Everything due is later than this."""
    until: datetime
    """Nothing due is later than this."""
    excluded: Calendar | None
    max_runs: int | None


def _rule(schedule: Schedule, site: str) -> _Rule:
    since = max(schedule.active_since, schedule.valid_from or schedule.active_since) - _MOMENT
    until = (schedule.valid_until or LATEST) - _MOMENT
    key = f"{schedule.name}:{site}" if differs_by_site(schedule.timing) else ""
    excluded = calendar(schedule.exclusions) if schedule.exclusions else None
    return _Rule(key, schedule.timing, since, until, excluded, schedule.max_runs)


def _following(rule: _Rule, after: datetime) -> datetime | None:
    moment = max(after, rule.since)
    for _ in range(_EXCLUDED_IN_A_ROW):
        instant = _after(rule, moment) if moment < rule.until else None
        if instant is None or instant > rule.until:
            return None
        end = rule.excluded and rule.excluded.end_of(instant)
        if not end:
            return instant
        moment = end - _MOMENT
    return None


class _Runs:
    """Counts the runs of a rule that has only so many: no further than somebody asks, and none of them twice."""

    def __init__(self, rule: _Rule) -> None:
        self._reached, self._last = rule.since, _calculated(rule)
        self._walk = islice(_counted(rule), rule.max_runs)

    def last(self, until: datetime) -> datetime | None:
        """Return the last run of all; None where runs are left after a moment, or where the rule ends otherwise."""
        while self._last is None and self._reached <= until:
            self._last, self._reached = (None, reached) if (reached := next(self._walk, None)) else (self._reached, self._reached)
        return self._last


@lru_cache(maxsize=8_192)
def _runs(rule: _Rule) -> _Runs:
    return _Runs(rule)


def _last(rule: _Rule, until: datetime) -> datetime | None:
    return _runs(rule).last(until) if rule.max_runs else None


def _calculated(rule: _Rule) -> datetime | None:
    """Return the last run at an interval of which nothing is excluded, where it is before the end; None for any other."""
    if not isinstance(rule.timing, Interval) or rule.excluded or not rule.max_runs or not (first := _following(rule, rule.since)):
        return None
    last = _seconds(first) + (rule.max_runs - 1) * rule.timing.every_s
    return _at(min(last, _seconds(rule.until)))


def _counted(rule: _Rule) -> Iterator[datetime]:
    if isinstance(rule.timing, Cron):
        yield from _counted_by_cron(rule, cron.key_of(rule.timing))
        return
    moment = rule.since
    while following := _following(rule, moment):
        yield following
        moment = following


def _counted_by_cron(rule: _Rule, key: cron.Key) -> Iterator[datetime]:
    """Yield what `_following` finds one after another, without the pages, which are made for looking things up again."""
    moment: datetime | None = rule.since
    in_a_row, last_end = 0, None
    while moment:
        start, moment = moment, None
        for instant in cron.instants(key, start):
            if instant > rule.until:
                return
            end = rule.excluded and rule.excluded.end_of(instant)
            if not end:
                in_a_row = 0
                yield instant
                continue
            in_a_row, last_end = in_a_row + (end != last_end), end
            if in_a_row >= _EXCLUDED_IN_A_ROW:
                return
            if end - instant > _WALKED:
                moment = end - _MOMENT
                break


def _after(rule: _Rule, moment: datetime) -> datetime | None:
    """Return the first instant of the timing alone strictly after a moment."""
    match rule.timing:
        case Interval() as timing:
            return _at(_floor(moment, timing.every_s, _phase_s(timing, rule.key)) + timing.every_s)
        case Cron() as timing:
            return cron.after(cron.key_of(timing), moment)
        case Random() as timing:
            return _at(randomly.after(timing, rule.key, _seconds(moment)))
        case Once() as timing:
            return timing.at.astimezone(UTC) if timing.at > moment else None
        case Manual():
            return None


def _before(rule: _Rule, moment: datetime, after: datetime) -> datetime | None:
    """Return the last instant of the timing alone in (after, moment]."""
    match rule.timing:
        case Interval() as timing:
            instant = _at(_floor(moment, timing.every_s, _phase_s(timing, rule.key)))
        case Cron() as timing:
            return cron.before(cron.key_of(timing), moment, after)
        case Random() as timing:
            instant = _at(randomly.before(timing, rule.key, _seconds(moment)))
        case Once() as timing:
            instant = timing.at.astimezone(UTC)
        case Manual():
            return None
    return instant if after < instant <= moment else None


def _phase_s(timing: Interval, key: str) -> int:
    """Return the phase in seconds; a spread one lies in the middle 80 % of the period, clear of the top of the hour."""
    if timing.phase_s is not None:
        return timing.phase_s % timing.every_s
    return int(timing.every_s * (0.1 + 0.8 * _share(key)))


def _share(key: str) -> float:
    """Return a number in [0, 1) that follows from a text and is spread evenly over texts."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) / 2**64


def _floor(moment: datetime, every: int, phase: int) -> int:
    return (_seconds(moment) - phase) // every * every + phase


def _seconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _SECOND


def _at(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)
