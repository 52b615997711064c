"""Every instant that was due is run or closed, once: held against a model that only looks at a clock, minute by minute."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.store import applied
from services.scheduler.plan import Plan, lifetime, tick_of
from shared.due import start_of
from shared.events import run_id_of
from shared.ledger import EDGE, Due, Version, between, spans, starting
from shared.schedules import Interval, Schedule, ScheduleSpec

T0 = datetime(2026, 11, 25, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOURS = 8
END = T0 + timedelta(hours=HOURS + 4)
SITES = ("home", "office")


@st.composite
def histories(draw: st.DrawFn) -> list[Version]:
    """Return what people do to a schedule in some hours, through the API, which says from when on each version is due."""
    found: list[Version] = []
    before: Schedule | None = None
    for number, minute in enumerate(sorted(draw(st.sets(st.integers(0, HOURS * 60), min_size=2, max_size=8))), 1):
        since = T0 + minute * MINUTE + timedelta(seconds=draw(st.sampled_from((0, 1, 15, 59))), milliseconds=250)
        before = _edited(draw, before, since)
        found.append(Version(number, "s", since, before))
    return found


def _edited(draw: st.DrawFn, before: Schedule | None, since: datetime) -> Schedule | None:
    what = (
        draw(st.sampled_from(("start", "start", "catch up", "catch up", "engine", "enabled", "sites", "timing", "remove")))
        if before
        else "timing"
    )
    if before is None or what == "remove":
        return None if before else _made(_drawn(draw), None, since)
    new = _drawn(draw)
    names = {
        "start": ("spread_s", "jitter_s"),
        "catch up": ("catch_up", "catch_up_within_s"),
        "engine": ("engine", "priority"),
        "sites": ("sites",),
        "timing": ("timing", "spread_s", "jitter_s"),
    }
    fields = {"enabled": not before.enabled} if what == "enabled" else {name: new[name] for name in names[what]}
    spec = {name: getattr(before, name) for name in ScheduleSpec.model_fields} | fields
    shortest = spec["timing"].every_s - 1
    return _made({**spec, "spread_s": min(spec["spread_s"], shortest), "jitter_s": min(spec["jitter_s"], shortest)}, before, since)


def _drawn(draw: st.DrawFn) -> dict[str, Any]:
    every_s = 60 * draw(st.sampled_from((5, 10, 12, 30, 60, 120)))
    return {
        "timing": Interval(every_s=every_s, phase_s=0),
        "spread_s": draw(st.sampled_from((0, 0, every_s // 2, every_s - 1))),
        "jitter_s": draw(st.sampled_from((0, 0, every_s // 2, every_s - 1))),
        "catch_up": draw(st.sampled_from(("none", "latest", "all", "all"))),
        "catch_up_within_s": draw(st.sampled_from((1_800, 86_400, 86_400))),
        "engine": draw(st.sampled_from(("noop", "speedtest"))),
        "priority": draw(st.integers(0, 9)),
        "sites": draw(st.sampled_from((SITES, SITES[:1], SITES[1:]))),
    }


def _made(spec: dict[str, Any], before: Schedule | None, since: datetime) -> Schedule:
    made = applied("s", ScheduleSpec(**spec), before)
    return made if before and made.active_since == before.active_since else made.model_copy(update={"active_since": since})


@dataclass
class Model:
    """A wall clock, a schedule on the wall, and a list of what is still to be started today."""

    schedule: Schedule | None = None
    now: datetime = T0
    pending: dict[UUID, datetime] = field(default_factory=dict)
    started: list[UUID] = field(default_factory=list)
    withdrawn: list[UUID] = field(default_factory=list)

    def change(self, version: Version) -> None:
        """Let the time of a change come, and put another schedule on the wall: what was waiting is off where another time begins."""
        self.wait(version.since)
        goes_on = self.schedule and version.schedule and version.schedule.active_since == self.schedule.active_since
        if not goes_on or not version.schedule or not version.schedule.enabled:
            self.withdrawn += self.pending
            self.pending.clear()
        self.schedule = version.schedule

    def wait(self, until: datetime) -> None:
        """Let time pass, up to a moment that is not reached."""
        schedule = self.schedule
        minute = T0
        while schedule and schedule.enabled and minute < until:
            is_due = int(minute.timestamp()) % getattr(schedule.timing, "every_s", 0) == 0
            for site in schedule.sites if is_due and minute >= max(self.now, schedule.active_since) else ():
                self.pending[run_id_of("s", site, minute)] = start_of(schedule, site, minute)
            minute += MINUTE
        for run_id in [run_id for run_id, start_at in self.pending.items() if start_at < until]:
            del self.pending[run_id]
            self.started.append(run_id)
        self.now = until


def lived(history: Sequence[Version]) -> Model:
    """Return what becomes of every instant."""
    model = Model()
    for version in history:
        model.change(version)
    model.wait(END)
    return model


@given(histories(), st.integers(1, 120))
def test_each_instant_is_run_or_closed_once(history: list[Version], minutes: int) -> None:
    """In the pieces of a settler and by the audit: those, each for the right reason, and besides only what a late word explains."""
    model = lived(history)
    known = spans(history)
    edges = [*(T0 + (minute - 1) * MINUTE for minute in range(0, (HOURS + 4) * 60, minutes)), END - timedelta(microseconds=1)]
    for found in (
        [due for after, until in pairwise(edges) for due in starting(known, after, until)],
        [due for due in between(known, T0 - MINUTE, END) if due.start_at < END],
    ):
        certain = [due for due in found if due.is_certain]
        assert Counter(due.run_id for due in certain if not due.withdrawn) == Counter(model.started)
        assert Counter(due.run_id for due in certain if due.withdrawn) == Counter(model.withdrawn)
        others = {due.run_id for due in found} - {*model.started, *model.withdrawn}
        assert all(_came_just_after_a_change(due, history) for due in found if due.run_id in others)


def _came_just_after_a_change(due: Due, history: Sequence[Version]) -> bool:
    return any(version.since <= due.start_at < version.since + EDGE for version in history)


@given(histories())
def test_a_scheduler_publishes_once_what_is_to_be_run(history: list[Version]) -> None:
    """Nothing is measured again after a change, although the stream forgets its ticks soon, and nothing withdrawn is run."""
    model, plan = lived(history), Plan()
    forgotten_at: dict[UUID, datetime] = {}
    published: list[UUID] = []

    def publish(now: datetime) -> None:
        while taken := plan.take(now):
            for entry in taken:
                tick = tick_of(entry, now)
                if forgotten_at.get(tick.run_id, now) <= now:
                    published.append(tick.run_id)
                    forgotten_at[tick.run_id] = now + lifetime(tick, entry.schedule)
                plan.done(entry)

    for version, until in zip(history, [*(version.since for version in history[1:]), END], strict=True):
        plan.remove("s")
        if version.schedule:
            plan.put(version.schedule, version.since)
        publish(version.since)
        while (next_at := plan.next_at()) and next_at < until:
            publish(next_at)
    assert Counter(published) == Counter(model.started)


@pytest.mark.parametrize(
    ("fields", "begins"),
    [
        ({"catch_up": "all"}, True),
        ({"catch_up_within_s": 60}, True),
        ({"spread_s": 60}, True),
        ({"jitter_s": 60}, True),
        ({"enabled": False}, False),
        ({"engine": "noop", "priority": 9, "start_within_s": 60}, False),
    ],
)
def test_what_is_caught_up_and_when_runs_start_changes_from_now_on(fields: dict[str, Any], begins: bool) -> None:
    """Instants that passed under another rule may have been measured, and their ticks forgotten; what else changes moves nothing."""
    before = Schedule(name="s", timing=Interval(every_s=600), active_since=T0)
    spec = ScheduleSpec(timing=before.timing)
    assert (applied("s", spec.model_copy(update=fields), before).active_since != T0) is begins
