"""What is due and when: a heap of (start, schedule, site), with the clock passed in."""

import heapq
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared import due
from shared.events import Tick, Trigger, run_id_of
from shared.provision import TICK_KEPT_S, TICKS_LIVE_S
from shared.schedules import LATE_S, Schedule

log = logging.getLogger(__name__)

LATE = timedelta(seconds=LATE_S)
"""A run that starts later than this is one that is caught up: no scheduler was there in time."""


@dataclass(eq=False)
class Entry:
    """A schedule at one site and the instant at which it is due next."""

    schedule: Schedule
    site: str
    due_at: datetime

    @property
    def start_at(self) -> datetime:
        """When the run is to start: the instant, with the spread of the site and the jitter of the run."""
        return due.start_of(self.schedule, self.site, self.due_at)


class Plan:
    """All schedules that are enabled, the earliest start first.

    Take what is to start with `take`, or shortly before with `take_ahead`, publish it, then give it back with `done`. An entry whose
    schedule was changed or removed in the meantime is not the current one any more, and is dropped.
    """

    def __init__(self) -> None:
        self._current: dict[str, dict[str, Entry]] = {}
        self._heap: list[tuple[datetime, int, Entry]] = []
        self._pushed = 0
        self._entries = 0
        self._broken: set[str] = set()

    def __len__(self) -> int:
        """Return the number of schedules in the plan."""
        return len(self._current)

    def names(self) -> set[str]:
        """Return the names of the schedules in the plan."""
        return set(self._current)

    def broken(self) -> set[str]:
        """Return the names of the schedules that were left out because their instants cannot be worked out."""
        return set(self._broken)

    def put(self, schedule: Schedule, now: datetime) -> None:
        """Take a schedule into the plan, in place of an earlier version of it.

        Of the instants that passed unseen since it was activated, those are due at once that its catch-up asks for. Whether
        somebody published them already is not asked: the stream refuses them then.
        """
        self.remove(schedule.name)
        if not schedule.enabled:
            return
        entries = self._current[schedule.name] = {}
        first: datetime | None = None
        with self._guarding(schedule):
            for site in dict.fromkeys(schedule.sites):
                if not entries or not due.same_everywhere(schedule):
                    first = _next(schedule, site, schedule.active_since - timedelta(microseconds=1), now)
                if first:
                    entries[site] = Entry(schedule, site, first)
                    self._entries += 1
                    self._push(entries[site])

    def replan(self, now: datetime) -> None:
        """Plan every schedule anew, as if it had just been read."""
        for entries in list(self._current.values()):
            for entry in list(entries.values())[:1]:
                self.put(entry.schedule, now)

    def remove(self, name: str) -> None:
        """Forget a schedule."""
        self._broken.discard(name)
        self._entries -= len(self._current.pop(name, ()))
        if len(self._heap) > 2 * self._entries:  # most of it is of versions that are gone: each edit leaves some
            self._heap = [each for each in self._heap if self.has(each[2])]
            heapq.heapify(self._heap)
        while self._heap and not self.has(self._heap[0][2]):
            heapq.heappop(self._heap)

    def next_at(self) -> datetime | None:
        """Return the earliest start, or None when nothing is planned."""
        return self._heap[0][0] if self._heap else None

    def take(self, now: datetime) -> list[Entry]:
        """Take out everything that is to start.

        Where more than one instant of an entry has passed (the clock was set, the machine slept, the bus was away), the catch-up
        of its schedule says which of them is taken.
        """
        taken: list[Entry] = []
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)[2]
            if not self.has(entry):
                continue
            with self._guarding(entry.schedule):
                instant = _next(entry.schedule, entry.site, entry.due_at - timedelta(microseconds=1), now)
                if instant is None:
                    continue
                entry.due_at = instant
                if entry.start_at <= now:
                    taken.append(entry)
                else:
                    self._push(entry)
        return taken

    def take_ahead(self, until: datetime) -> dict[datetime, list[Entry]]:
        """Take out everything that is to start by a moment, by its start, the earliest first, so that it can be made ready.

        What is to start already must have been taken before.
        """
        ahead: dict[datetime, list[Entry]] = {}
        while self._heap and self._heap[0][0] <= until:
            start_at, _, entry = heapq.heappop(self._heap)
            if self.has(entry):
                ahead.setdefault(start_at, []).append(entry)
        return ahead

    def put_back(self, entry: Entry) -> None:
        """Take back what was taken and not published."""
        if self.has(entry):
            self._push(entry)

    def has(self, entry: Entry) -> bool:
        """Return whether the schedule of an entry is still as it was when the entry was planned."""
        return self._current.get(entry.schedule.name, {}).get(entry.site) is entry

    def ticks(self, entries: Iterable[Entry], now: datetime) -> list[tuple[Entry, Tick, timedelta]]:
        """Return what was taken with its tick, and for how long the stream must remember that."""
        found = []
        for entry in entries:
            with self._guarding(entry.schedule):
                tick = tick_of(entry, now)
                found.append((entry, tick, lifetime(tick, entry.schedule)))
        return found

    def done(self, entry: Entry) -> None:
        """Plan the next instant of an entry whose tick is in the stream."""
        if not self.has(entry):
            return
        with self._guarding(entry.schedule):
            following = due.following(entry.schedule, entry.site, entry.due_at)
            if following:
                entry.due_at = following
                self._push(entry)

    @contextmanager
    def _guarding(self, schedule: Schedule) -> Iterator[None]:
        """Leave a schedule out whose instants cannot be worked out, and tell so: the others go on."""
        try:
            yield
        except due.BROKEN:
            log.exception("the instants of a schedule cannot be worked out: it is not run", extra={"schedule": schedule.name})
            self.remove(schedule.name)
            self._broken.add(schedule.name)

    def _push(self, entry: Entry) -> None:
        self._pushed += 1  # a tie-breaker: entries have no order of their own
        heapq.heappush(self._heap, (entry.start_at, self._pushed, entry))


def tick_of(entry: Entry, now: datetime) -> Tick:
    """Return the tick of an entry; it expires when the next run starts, or `start_within_s` after it could first be seen.

    Where everything is caught up, runs wait for each other, and the next one ends none of them.
    """
    schedule, start_at = entry.schedule, entry.start_at
    trigger: Trigger = "catch_up" if now - start_at > LATE else "schedule"
    seen_at = max(start_at, now)
    expires_at = seen_at + timedelta(seconds=schedule.start_within_s)
    following = _first_starting(schedule, entry.site, seen_at)
    if following and not (trigger == "catch_up" and schedule.catch_up == "all"):
        expires_at = min(expires_at, due.start_of(schedule, entry.site, following))
    return Tick(
        run_id=run_id_of(schedule.name, entry.site, entry.due_at),
        site=entry.site,
        schedule=schedule.name,
        trigger=trigger,
        engine=schedule.engine,
        options=schedule.options,
        fallback=schedule.fallback,
        line=schedule.line,
        labels=schedule.labels,
        due_at=entry.due_at,
        start_at=start_at if start_at != entry.due_at else None,
        published_at=now,
        expires_at=expires_at,
        overlap=schedule.overlap,
        priority=schedule.priority,
    )


def lifetime(tick: Tick, schedule: Schedule) -> timedelta:
    """Return how long the stream must remember a tick: as long as a scheduler that starts anew could publish it again."""
    again = tick.due_at + due.looked_back(schedule)
    if schedule.catch_up != "all" and (following := due.following(schedule, tick.site, tick.due_at)):
        again = due.start_of(schedule, tick.site, following)
    until = max(tick.expires_at, again)
    return min(until - tick.published_at + timedelta(seconds=TICK_KEPT_S), timedelta(seconds=TICKS_LIVE_S))


def _next(schedule: Schedule, site: str, after: datetime, now: datetime) -> datetime | None:
    """Return the next instant strictly after `after` that a scheduler should publish, be it due already or not."""
    oldest = max(after, now - due.looked_back(schedule))
    match schedule.catch_up:
        case "all":
            return due.following(schedule, site, oldest)
        case "latest":
            return due.last_started(schedule, site, oldest, now) or _first_starting(schedule, site, now, after)
        case "none":
            return _first_starting(schedule, site, now - LATE, after)


def _first_starting(schedule: Schedule, site: str, moment: datetime, after: datetime | None = None) -> datetime | None:
    """Return the first instant (strictly after `after`) whose run starts later than a moment."""
    earliest = moment - timedelta(seconds=schedule.spread_s + schedule.jitter_s)
    for instant in due.instants(schedule, site, max(earliest, after or earliest)):
        if due.start_of(schedule, site, instant) > moment:
            return instant
    return None
