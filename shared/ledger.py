"""What was to happen: every instant of every schedule as it was at the time. Pure functions of the schedules' history.

A scheduler publishes a run when it is to start, with what it then knows. So a version of a schedule answers for the runs that
were to start while it applied, and the next version for those after. An instant that was due by then and was to start later, when
another version applied that does not start it either, was withdrawn: nobody runs it, and it is closed all the same. Near the edge
between two versions, and before one that began to apply in the past, a scheduler may or may not have published a run: those
instants are not certain.
"""

import heapq
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from uuid import UUID

from shared import due
from shared.events import run_id_of
from shared.provision import TICK_KEPT_S, TICKS_LIVE_S
from shared.schedules import LATE_S, WHEN, Schedule

log = logging.getLogger(__name__)

EDGE = timedelta(seconds=5)
"""So much later than the server's time of a change may a scheduler learn of it."""


@dataclass(frozen=True)
class Version:
    """What a schedule became at a moment, in the order in which versions came; None when it was removed or is no schedule."""

    number: int
    name: str
    since: datetime
    schedule: Schedule | None


@dataclass(frozen=True, slots=True)
class Due:
    """An instant of a schedule at a site."""

    schedule: Schedule
    site: str
    due_at: datetime
    start_at: datetime
    is_certain: bool
    """False where there may be a run or not."""
    withdrawn: str | None = None
    """What became of its schedule before it was to start, so that nobody starts it; None for one that is to be run."""

    @property
    def run_id(self) -> UUID:
        """The id of its run."""
        return run_id_of(self.schedule.name, self.site, self.due_at)

    @property
    def expires_at(self) -> datetime:
        """From when on it is too late to start it, provided that its tick was published in time."""
        latest = self.start_at + timedelta(seconds=self.schedule.start_within_s)
        return min(latest, self._next_start() or latest)

    @property
    def remembered_until(self) -> datetime:
        """Until when its tick is in the stream at the least, provided that it was published in time."""
        until = self._next_start() or self.expires_at
        return min(until + timedelta(seconds=TICK_KEPT_S), self.start_at + timedelta(seconds=TICKS_LIVE_S))

    def _next_start(self) -> datetime | None:
        try:
            following = due.following(self.schedule, self.site, self.due_at)
        except due.BROKEN as error:
            return _tell(self.schedule.name, str(error))
        return due.start_of(self.schedule, self.site, following) if following else None


@dataclass(frozen=True)
class Span:
    """A schedule and the time for which it applied."""

    schedule: Schedule
    since: datetime
    reach: timedelta
    """How far before `since` a scheduler may have looked for instants to catch up."""
    ended_by: Version | None
    """What the schedule became after that; None while it still applies."""
    following: "Span | None" = field(compare=False, repr=False)
    """When it applied again; None while it did not."""

    @property
    def until(self) -> datetime | None:
        """When it ended; None while it still applies."""
        return self.ended_by.since if self.ended_by else None

    def due(self, site: str, due_at: datetime, start_at: datetime) -> Due | None:
        """Return what this version says of one of its instants, or None where another version, or none, answers for it."""
        if start_at < self.since:
            return Due(self.schedule, site, due_at, start_at, is_certain=False) if start_at >= self.since - self.reach else None
        if self.ended_by is None or start_at < self.ended_by.since:
            return Due(self.schedule, site, due_at, start_at, is_certain=True)
        if due_at >= self.ended_by.since:
            return Due(self.schedule, site, due_at, start_at, is_certain=False) if start_at < self.ended_by.since + EDGE else None
        if self.following and self.following.takes_over(site, due_at):
            return None
        return Due(self.schedule, site, due_at, start_at, is_certain=True, withdrawn=_ending(self.schedule, self.ended_by))

    def takes_over(self, site: str, due_at: datetime) -> bool:
        """Return whether an instant that was due before is one of this version, too, and is to start after this version began."""
        return is_instant(self.schedule, site, due_at) and due.start_of(self.schedule, site, due_at) >= self.since


def spans(versions: Iterable[Version]) -> list[Span]:
    """Return the times for which each schedule applied, paused ones left out.

    A later version counts from its own time on even where that is before an earlier one's: the clock of the server was set back.
    """
    by_name: dict[str, list[Version]] = {}
    for version in sorted(versions, key=lambda each: each.number):
        by_name.setdefault(version.name, []).append(version)
    return [span for history in by_name.values() for span in _spans(history)]


def _spans(history: Sequence[Version]) -> list[Span]:
    found: list[Span] = []
    earliest: Version | None = None
    for version in reversed(history):
        if earliest and version.since >= earliest.since:
            continue
        if version.schedule and version.schedule.enabled:
            reach, following = EDGE + due.looked_back(version.schedule), found[-1] if found else None
            found.append(Span(version.schedule, version.since, reach, earliest, following))
        earliest = version
    return found[::-1]


def _ending(schedule: Schedule, ended_by: Version) -> str:
    """Return what became of a schedule, and when, as a clause."""
    after = ended_by.schedule
    if after is None:
        what = "removed (or became invalid)"
    elif not after.enabled:
        what = "paused"
    else:
        fields = ", ".join(name for name in WHEN if getattr(schedule, name) != getattr(after, name))
        what = f"changed ({fields or 'active_since'})"
    return f"the schedule was {what} at {ended_by.since:%Y-%m-%d %H:%M:%S} UTC"


def starting(history: Iterable[Span], after: datetime, until: datetime) -> Iterator[Due]:
    """Yield the instants whose runs were to start in (after, until], and those that a version which began then may have caught up.

    In no order; an instant at an edge may come from both of its sides.
    """
    for span in history:
        if span.since <= until and (span.until is None or after < span.until + max(EDGE, _latest_start(span.schedule))):
            for site in dict.fromkeys(span.schedule.sites):
                yield from _unbroken(span, _starting(span, site, after, until))


def _starting(span: Span, site: str, after: datetime, until: datetime) -> Iterator[Due]:
    if after < span.since:
        yield from _caught_up(span, site)
    earliest = max(after, span.since - _MOMENT)
    latest = until if span.until is None else min(until, span.until + EDGE)
    for due_at in due.instants(span.schedule, site, earliest - _latest_start(span.schedule)):
        if due_at > latest:
            return
        start_at = due.start_of(span.schedule, site, due_at)
        if earliest < start_at <= until and (found := span.due(site, due_at, start_at)):
            yield found


def _caught_up(span: Span, site: str) -> Iterator[Due]:
    """Yield what a scheduler that reads a version as it begins publishes at once: instants that had passed by then."""
    schedule = span.schedule
    oldest = span.since - span.reach
    if schedule.catch_up == "latest":
        last = due.last_started(schedule, site, oldest, span.since - _MOMENT)
        if last is None:
            return
        oldest = min(last - _MOMENT, span.since - EDGE)
    for due_at in due.instants(schedule, site, oldest):
        if due_at >= span.since:
            return
        start_at = due.start_of(schedule, site, due_at)
        if start_at < span.since:
            yield Due(schedule, site, due_at, start_at, is_certain=False)


def between(history: Iterable[Span], since: datetime, until: datetime) -> Iterator[Due]:
    """Yield the instants that were due in [since, until), the earliest first; one at an edge may come from both of its sides."""
    touched = (span for span in history if span.until is None or since < span.until + EDGE)  # most versions ended long ago
    each = (_unbroken(span, _between(span, site, since, until)) for span in touched for site in dict.fromkeys(span.schedule.sites))
    return heapq.merge(*each, key=lambda found: found.due_at)


def _between(span: Span, site: str, since: datetime, until: datetime) -> Iterator[Due]:
    earliest = max(since, span.since - span.reach - _latest_start(span.schedule))
    latest = until if span.until is None else min(until, span.until + EDGE)
    for due_at in due.instants(span.schedule, site, earliest - _MOMENT):
        if due_at >= latest:
            return
        if found := span.due(site, due_at, due.start_of(span.schedule, site, due_at)):
            yield found


def is_instant(schedule: Schedule, site: str, moment: datetime) -> bool:
    """Return whether a schedule, were it enabled, is due at a site at a moment."""
    try:
        return site in schedule.sites and due.following(schedule, site, moment - _MOMENT) == moment
    except due.BROKEN as error:
        _tell(schedule.name, str(error))
        return False


def was_an_instant(history: Iterable[Span], site: str, moment: datetime) -> bool:
    """Return whether any of a schedule's versions that had begun by a moment is due then, had no later one come.

    A site that is cut off goes by its own copy of the schedules, however old that is.
    """
    return any(span.since <= moment and is_instant(span.schedule, site, moment) for span in history)


def may_be_published(schedule: Schedule | None, site: str, due_at: datetime, now: datetime) -> bool:
    """Return whether a scheduler that comes back now, with the schedule as it is, would still publish an instant that has passed."""
    if schedule is None or not schedule.enabled or not is_instant(schedule, site, due_at):
        return False
    try:
        return _is_looked_for(schedule, site, due_at, now)
    except due.BROKEN as error:
        _tell(schedule.name, str(error))
        return False


def _is_looked_for(schedule: Schedule, site: str, due_at: datetime, now: datetime) -> bool:
    oldest = now - due.looked_back(schedule)
    match schedule.catch_up:
        case "all":
            return due_at > oldest
        case "latest":
            return due_at > oldest and due_at == due.last_started(schedule, site, oldest, now)
        case "none":
            return due.start_of(schedule, site, due_at) > now - timedelta(seconds=LATE_S)


def _unbroken(span: Span, found: Iterator[Due]) -> Iterator[Due]:
    """Yield what can be worked out of a schedule: for a broken one that is told, and the others go on."""
    try:
        yield from found
    except due.BROKEN as error:
        _tell(span.schedule.name, str(error))


@lru_cache(maxsize=1_000)
def _tell(name: str, error: str) -> None:
    """Log it once: the same schedule is looked at every few seconds."""
    log.error("the instants of a schedule cannot be worked out: nothing is expected of it", extra={"schedule": name, "error": error})


def _latest_start(schedule: Schedule) -> timedelta:
    """Return how long after its instant a run may start."""
    return timedelta(seconds=schedule.spread_s + schedule.jitter_s)


_MOMENT = timedelta(microseconds=1)
