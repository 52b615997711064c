"""What is due and when: a heap of (instant, schedule, site), with the clock passed in."""

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared import due
from shared.events import Tick, Trigger, run_id_of
from shared.provision import CATCH_UP_WINDOW_S
from shared.schedules import Interval, Schedule

_WINDOW = timedelta(seconds=CATCH_UP_WINDOW_S)


@dataclass(eq=False)
class Entry:
    """A schedule at one site and the instant at which it is due next."""

    schedule: Schedule
    site: str
    due_at: datetime
    trigger: Trigger = "schedule"


class Plan:
    """All schedules that are enabled, the earliest first.

    Take what is due with `take`, publish it, then give it back with `done`. An entry whose schedule was changed or removed in
    the meantime is not the current one any more, and is dropped.
    """

    def __init__(self) -> None:
        self._current: dict[str, dict[str, Entry]] = {}
        self._heap: list[tuple[datetime, int, Entry]] = []
        self._pushed = 0

    def names(self) -> set[str]:
        """Return the names of the schedules in the plan."""
        return set(self._current)

    def put(self, schedule: Schedule, now: datetime) -> None:
        """Take a schedule into the plan, in place of an earlier version of it.

        The latest instant that passed unseen (in the catch-up window, since the schedule was activated) is due at once. Whether
        somebody published it already is not asked: the stream refuses it then.
        """
        self.remove(schedule.name)
        if not schedule.enabled:
            return
        entries: dict[str, Entry] = {}
        missed = first = None
        for site in dict.fromkeys(schedule.sites):
            if not entries or isinstance(schedule.timing, Interval):  # a cron expression means the same instant at every site
                missed = due.latest(schedule, site, now - _WINDOW, now)
                first = missed or due.following(schedule, site, now)
            if first:
                entries[site] = Entry(schedule, site, first, "catch_up" if missed else "schedule")
                self._push(entries[site])
        self._current[schedule.name] = entries

    def replan(self, now: datetime) -> None:
        """Plan every schedule anew, as if it had just been read."""
        for entries in list(self._current.values()):
            for entry in list(entries.values())[:1]:
                self.put(entry.schedule, now)

    def remove(self, name: str) -> None:
        """Forget a schedule."""
        self._current.pop(name, None)
        while self._heap and not self._is_current(self._heap[0][2]):
            heapq.heappop(self._heap)

    def next_at(self) -> datetime | None:
        """Return the earliest due instant, or None when nothing is planned."""
        return self._heap[0][0] if self._heap else None

    def take(self, now: datetime) -> list[Entry]:
        """Take out everything that is due.

        Where more than one instant of an entry has passed (the clock was set, the machine slept, the bus was away), only the
        latest is taken, as a catch-up.
        """
        taken: list[Entry] = []
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)[2]
            if not self._is_current(entry):
                continue
            if later := due.latest(entry.schedule, entry.site, max(entry.due_at, now - _WINDOW), now):
                entry.due_at, entry.trigger = later, "catch_up"
            taken.append(entry)
        return taken

    def done(self, entry: Entry) -> None:
        """Plan the next instant of an entry whose tick is in the stream."""
        if not self._is_current(entry):
            return
        following = due.following(entry.schedule, entry.site, entry.due_at)
        if following:
            entry.due_at, entry.trigger = following, "schedule"
            self._push(entry)

    def _is_current(self, entry: Entry) -> bool:
        return self._current.get(entry.schedule.name, {}).get(entry.site) is entry

    def _push(self, entry: Entry) -> None:
        self._pushed += 1  # a tie-breaker: entries have no order of their own
        heapq.heappush(self._heap, (entry.due_at, self._pushed, entry))


def tick_of(entry: Entry, now: datetime) -> Tick:
    """Return the tick of an entry; it expires at the next instant, or `start_within_s` after it could first be seen."""
    schedule = entry.schedule
    start = max(entry.due_at, now)
    following = due.following(schedule, entry.site, start)
    latest_start = start + timedelta(seconds=schedule.start_within_s)
    return Tick(
        run_id=run_id_of(schedule.name, entry.site, entry.due_at),
        site=entry.site,
        schedule=schedule.name,
        trigger=entry.trigger,
        engine=schedule.engine,
        options=schedule.options,
        due_at=entry.due_at,
        published_at=now,
        expires_at=min(following, latest_start) if following else latest_start,
    )
