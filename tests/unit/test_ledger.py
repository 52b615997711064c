"""What was due by the history of the schedules: pure, and held against the scheduler's own plan."""

import itertools
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.plan import Plan
from shared import ledger
from shared.due import start_of
from shared.events import run_id_of
from shared.ledger import EDGE, Due, Version, between, may_be_published, spans, starting, was_an_instant
from shared.schedules import Cron, Interval, Once, Schedule

T0 = datetime(2026, 10, 25, tzinfo=UTC)
"""Clocks change on this day in Berlin."""
SECOND = timedelta(seconds=1)
SITES = tuple(f"site-{number}" for number in range(50))
END = T0 + timedelta(seconds=200)


def schedule(every_s: int = 10, since: datetime = T0, **fields: Any) -> Schedule:
    """Return an interval schedule that began to apply at a moment."""
    return Schedule(**{"name": "s", "timing": Interval(every_s=every_s, phase_s=0), "active_since": since, "engine": "noop", **fields})


def certain(found: Any) -> set[UUID]:
    """Return the runs that must be."""
    return {due.run_id for due in found if due.is_certain}


@st.composite
def histories(draw: st.DrawFn) -> list[Version]:
    """Return what may become of a schedule in some minutes: edited, paused, resumed, removed, broken, put by hand with a past."""
    found: list[Version] = []
    moments = sorted(draw(st.sets(st.integers(0, 150), min_size=1, max_size=5)))
    last: Schedule | None = None
    for number, second in enumerate(moments, 1):
        since = T0 + timedelta(seconds=second, milliseconds=500)
        what = draw(st.sampled_from(("new", "new", "same instants", "pause", "remove", "with a past")))
        fields: dict[str, Any] = {
            "spread_s": draw(st.sampled_from((0, 0, 7))),
            "jitter_s": draw(st.sampled_from((0, 0, 12))),
            "catch_up": draw(st.sampled_from(("none", "latest", "all"))),
            "catch_up_within_s": draw(st.sampled_from((0, 30, 86_400))),
        }
        # with more jitter than there is between two instants, the later one may start first, and the scheduler leaves the other out
        made = schedule(draw(st.integers(max(fields["spread_s"], fields["jitter_s"] + 1), 40)), since, **fields)
        if what == "same instants" and last and last.enabled:
            jitter_s = made.jitter_s if isinstance(last.timing, Interval) and last.timing.every_s > made.jitter_s else 0
            made = made.model_copy(update={"timing": last.timing, "active_since": last.active_since, "jitter_s": jitter_s})
        elif what == "with a past":
            made = made.model_copy(update={"active_since": since - timedelta(seconds=draw(st.integers(0, 100)))})
        elif what == "pause":
            made = made.model_copy(update={"enabled": False})
        last = None if what == "remove" else made
        found.append(Version(number, "s", since, last))
    return found


def published(history: Sequence[Version]) -> set[UUID]:
    """Return the runs that a scheduler publishes which is always there and learns of every change at once."""
    plan, found = Plan(), set[UUID]()

    def publish(now: datetime) -> None:
        while taken := plan.take(now):
            for entry in taken:
                found.add(run_id_of("s", entry.site, entry.due_at))
                plan.done(entry)

    changes = list(history)
    now = T0
    while now <= END:
        while changes and changes[0].since <= now:
            change = changes.pop(0)
            publish(change.since)
            plan.remove("s")
            if change.schedule:
                plan.put(change.schedule, change.since)
                publish(change.since)
        publish(now)
        now += SECOND / 2
    return found


@given(histories())
def test_a_scheduler_publishes_what_was_due_and_nothing_else(history: list[Version]) -> None:
    """Whatever is changed: no instant that must have a row is without a run, and no run is of an instant that nobody expects."""
    known = spans(history)
    due = list(starting(known, T0 - timedelta(days=2), END))
    runs = published(history)
    assert certain(each for each in due if not each.withdrawn) <= runs
    assert runs <= {each.run_id for each in due}
    audited = list(between(known, T0 - timedelta(days=2), END + SECOND))
    assert runs <= {each.run_id for each in audited}


@given(histories(), st.lists(st.integers(0, 400), max_size=6))
def test_it_makes_no_difference_in_which_pieces_time_is_looked_at(history: list[Version], cuts: list[int]) -> None:
    """A sweep goes on where the last one ended: nothing is left out in between, and nothing certain comes twice."""
    known = spans(history)
    edges = [T0, *(T0 + cut * SECOND / 2 for cut in sorted(set(cuts)) if cut), END + SECOND]
    pieces = [list(starting(known, after, until)) for after, until in itertools.pairwise(edges)]
    whole = list(starting(known, T0, END + SECOND))
    assert set().union(*map(certain, pieces)) == certain(whole)
    assert sum(len([due for due in piece if due.is_certain]) for piece in pieces) == len([due for due in whole if due.is_certain])
    assert {due.run_id for piece in pieces for due in piece} == {due.run_id for due in whole}


@given(histories())
def test_the_audit_expects_what_the_settler_closes(history: list[Version]) -> None:
    """By instants and by starts the same runs come out, those by instants in order."""
    known = spans(history)
    by_instant = list(between(known, T0 - timedelta(days=2), END + timedelta(seconds=30)))
    by_start = list(starting(known, T0 - timedelta(days=2), END + timedelta(seconds=60)))
    assert [due.due_at for due in by_instant] == sorted(due.due_at for due in by_instant)
    assert certain(by_instant) == certain(due for due in by_start if due.due_at < END + timedelta(seconds=30))


def test_a_schedule_that_cannot_be_worked_out_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What others are due is found whoever is broken beside them; that one is told once, not at every look."""
    broken = schedule(name="bad").model_copy(update={"timing": Interval.model_construct(every_s=0, phase_s=0)})
    known = spans([Version(1, "bad", T0, broken), Version(2, "good", T0, schedule(name="good"))])
    for _ in range(3):
        for found in (starting(known, T0, END), between(known, T0 + SECOND, END + SECOND)):
            assert [due.schedule.name for due in found] == ["good"] * 20
    assert not may_be_published(broken, "home", T0, T0 + SECOND)
    instant = Due(broken, "home", T0, T0, is_certain=True)
    assert instant.expires_at == T0 + timedelta(hours=1)
    assert instant.remembered_until == T0 + timedelta(hours=1, minutes=5)
    assert [record.__dict__["schedule"] for record in caplog.records] == ["bad"]


@given(st.integers(1, 7_200), st.integers(0, 3_000), st.integers(1, 20_000))
def test_a_schedule_that_never_changed_is_due_at_its_instants(every_s: int, from_s: int, for_s: int) -> None:
    """Counted by hand: each multiple of the period in the time that is looked at."""
    after, until = T0 + from_s * SECOND, T0 + (from_s + for_s) * SECOND
    found = sorted(due.due_at for due in starting(spans([Version(1, "s", T0, schedule(every_s))]), after, until))
    first = int(after.timestamp()) // every_s * every_s
    expected = [second for second in range(first, int(until.timestamp()) + 1, every_s) if second > after.timestamp()]
    assert [int(due_at.timestamp()) for due_at in found] == expected


def test_the_edges_of_a_change_are_not_certain() -> None:
    """Shortly after the server's time of a change a scheduler may not know of it, so a run may be there or not."""
    known = spans([Version(1, "s", T0, schedule(1)), Version(2, "s", T0 + 20 * SECOND, None)])
    found = {due.due_at: due.is_certain for due in starting(known, T0, T0 + 60 * SECOND)}
    assert found == {T0 + second * SECOND: second < 20 for second in range(1, 20 + EDGE // SECOND)}
    late = [due.due_at for due in between(known, T0 + 22 * SECOND, T0 + 60 * SECOND)]
    assert late == [T0 + 22 * SECOND, T0 + 23 * SECOND, T0 + 24 * SECOND]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"enabled": False}, "the schedule was paused at 2026-10-25 00:33:00 UTC"),
        ({"jitter_s": 0, "active_since": T0 + timedelta(minutes=33)}, "the schedule was changed (jitter_s) at 2026-10-25 00:33:00 UTC"),
        (None, "the schedule was removed (or became invalid) at 2026-10-25 00:33:00 UTC"),
        ({"priority": 9}, None),
        ({"jitter_s": 0}, "the schedule was changed (jitter_s) at 2026-10-25 00:33:00 UTC"),
    ],
)
def test_what_was_due_and_did_not_start_before_a_change_is_withdrawn(after: dict[str, Any] | None, told: str | None) -> None:
    """It says what was done to its schedule; a version that has the instant, too, and is yet to start it takes it over."""
    before, since = schedule(600, jitter_s=599), T0 + timedelta(minutes=33)
    due_at = T0 + timedelta(minutes=30)
    assert start_of(before, "home", due_at) > since + EDGE
    history = [Version(1, "s", T0, before), Version(2, "s", since, before.model_copy(update=after) if after else None)]
    (due,) = (each for each in between(spans(history), due_at, due_at + SECOND) if each.is_certain)
    assert (due.start_at, due.withdrawn) == (start_of(before, "home", due_at), told)


def test_a_copy_of_the_schedules_may_be_of_any_version_that_had_begun() -> None:
    """A site that is cut off may know the first of them still, and none that is yet to come, whatever past that one claims."""
    history = [Version(1, "s", T0, schedule(60)), Version(2, "s", T0 + 300 * SECOND, schedule(7)), Version(3, "s", T0 + 400 * SECOND, None)]
    expected = {60: True, 59: False, 304: True, 305: False, 360: True, 480: True, 486: True, 487: False}
    assert {second: was_an_instant(spans(history), "home", T0 + second * SECOND) for second in expected} == expected
    assert not was_an_instant(spans(history), "office", T0 + 60 * SECOND)


def test_versions_count_in_the_order_in_which_they_came() -> None:
    """A server whose clock was ahead, and was then set right: the later version applies from its own time on."""
    history = [Version(1, "s", T0, schedule(1)), Version(2, "s", T0 + 100 * SECOND, schedule(7)), Version(3, "s", T0 + 40 * SECOND, None)]
    assert max(due.due_at for due in starting(spans(history), T0, END) if due.is_certain) == T0 + 39 * SECOND
    (only,) = spans(history)
    assert (only.since, only.until) == (T0, T0 + 40 * SECOND)


def test_of_a_past_only_what_is_caught_up_may_have_a_run() -> None:
    """A schedule that is put back with the time since when it applies: the last instant by default, all where it says so."""
    past = T0 - timedelta(hours=3)
    for catch_up, count in (("latest", 1), ("all", 180), ("none", 0)):
        put = Version(1, "s", T0, schedule(60, past, catch_up=catch_up, timing=Interval(every_s=60, phase_s=30)))
        found = list(starting(spans([put]), T0 - SECOND, T0))
        assert (len(found), certain(found)) == (count, set())


@pytest.mark.parametrize(
    ("fields", "due", "expected"),
    [
        ({"catch_up": "latest"}, 190, True),
        ({"catch_up": "latest"}, 180, False),
        ({"catch_up": "latest", "catch_up_within_s": 5}, 190, True),
        ({"catch_up": "all"}, 10, True),
        ({"catch_up": "all", "catch_up_within_s": 60}, 130, False),
        ({"catch_up": "all", "catch_up_within_s": 60}, 150, True),
        ({"catch_up": "none"}, 180, False),
        ({"enabled": False}, 190, False),
        ({"active_since": T0 + timedelta(seconds=195)}, 190, False),
        ({"timing": Interval(every_s=7, phase_s=0)}, 190, False),
        ({"sites": ("office",)}, 190, False),
    ],
)
def test_what_a_scheduler_that_comes_back_may_publish(fields: dict[str, Any], due: int, expected: bool) -> None:
    """As its catch-up says, with the schedule as it is now: what it no longer has is not waited for."""
    now = T0 + timedelta(seconds=198)
    changed = schedule(**{"since": T0, **fields}) if "active_since" not in fields else schedule().model_copy(update=fields)
    assert may_be_published(changed, "home", T0 + due * SECOND, now) is expected
    assert not may_be_published(None, "home", T0 + due * SECOND, now)


def test_an_instant_knows_when_it_is_too_late() -> None:
    """Its run may start for so long, but not when the next one starts; its tick stays for five minutes more."""

    def due(made: Schedule) -> Due:
        return Due(made, "home", T0 + 10 * SECOND, start_of(made, "home", T0 + 10 * SECOND), is_certain=True)

    soon, short, only = schedule(), schedule(start_within_s=3), schedule(timing=Once(at=T0 + 10 * SECOND), start_within_s=60)
    assert [due(made).expires_at - T0 for made in (soon, short, only)] == [20 * SECOND, 13 * SECOND, 70 * SECOND]
    assert [due(made).remembered_until - T0 for made in (soon, short, only)] == [320 * SECOND, 320 * SECOND, 370 * SECOND]


def test_versions_of_long_ago_cost_nothing() -> None:
    """An audit of a day does not work out what hundreds of earlier versions were due: it begins at once."""
    made = [schedule(3_600, T0 - timedelta(days=300), name=f"s{number}", sites=SITES) for number in range(20)]
    history = [Version(0, each.name, T0 - timedelta(days=300 - edit), each) for edit in range(200) for each in made]
    known = spans(Version(number, each.name, each.since, each.schedule) for number, each in enumerate(history, 1))
    started = time.process_time()
    assert len(list(between(known, T0 - EDGE, T0 + SECOND))) == 20 * len(SITES)
    assert time.process_time() - started < 0.5


def test_clocks_that_change_are_no_gap() -> None:
    """The hour that comes twice in Berlin is two runs for a schedule that wants both."""
    made = schedule(timing=Cron(expression="30 2 * * *", zone="Europe/Berlin", fold="both"))
    found = list(ledger.between(spans([Version(1, "s", T0 - SECOND, made)]), T0, T0 + timedelta(days=1)))
    assert [due.due_at.hour for due in found] == [0, 1]
