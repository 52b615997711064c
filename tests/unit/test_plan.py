"""The scheduler's plan, with the clock in the test's hand."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from services.scheduler import app
from services.scheduler.app import Scheduler
from services.scheduler.metrics import Metrics
from services.scheduler.plan import Entry, Plan, lifetime, tick_of
from services.scheduler.schedules import Change, Snapshot
from shared import subjects
from shared.due import start_of
from shared.events import Tick
from shared.publish import BY_THEMSELVES, Batch, Message
from shared.schedules import Interval, Once, Schedule

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


NAMES = [f"s{number}" for number in range(BY_THEMSELVES + 1)]
"""Of as many schedules as are published together."""


def schedule(every_s: int = 60, **fields: Any) -> Schedule:
    """Return an interval schedule that became active at noon."""
    given = {"name": "s", "timing": Interval(every_s=every_s, phase_s=0), "active_since": NOON - timedelta(days=3)}
    return Schedule(**{**given, **fields})


def at(seconds: float) -> datetime:
    """Return the time so many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def test_a_schedule_that_was_just_made_owes_nothing() -> None:
    """Its first tick is the next instant, not one of the past."""
    plan = Plan()
    plan.put(schedule(active_since=at(1)), at(1))
    assert plan.next_at() == at(60)
    assert plan.take(at(59)) == []


def test_the_latest_instant_of_a_downtime_is_due_at_once() -> None:
    """One, not all; then the ordinary instants again."""
    plan = Plan()
    plan.put(schedule(), at(90))
    (entry,) = plan.take(at(90))
    assert (entry.due_at, tick_of(entry, at(90)).trigger) == (at(60), "catch_up")
    plan.done(entry)
    assert plan.next_at() == at(120)
    (entry,) = plan.take(at(120))
    assert (entry.due_at, tick_of(entry, at(120)).trigger) == (at(120), "schedule")


def test_nothing_older_than_the_stream_remembers_is_caught_up() -> None:
    """A weekly run of three days ago may be in the stream no more: publishing it again would repeat it."""
    plan = Plan()
    plan.put(
        schedule(7 * 86_400, timing=Interval(every_s=7 * 86_400, phase_s=int((NOON - timedelta(days=2)).timestamp()) % (7 * 86_400))), NOON
    )
    assert plan.take(NOON) == []


def test_a_machine_that_slept_takes_only_the_latest() -> None:
    """Ten instants passed at once: one tick, marked as caught up."""
    plan = Plan()
    plan.put(schedule(active_since=at(1)), at(1))
    (entry,) = plan.take(at(630))
    assert (entry.due_at, tick_of(entry, at(630)).trigger) == (at(600), "catch_up")


def test_an_entry_that_is_being_published_is_not_taken_again() -> None:
    """While the bus is away nothing piles up; afterwards the latest instant goes out."""
    plan = Plan()
    plan.put(schedule(active_since=at(1)), at(1))
    (entry,) = plan.take(at(60))
    assert plan.take(at(500)) == []
    plan.done(entry)
    (entry,) = plan.take(at(500))
    assert entry.due_at == at(480)


def test_what_starts_soon_is_taken_ahead() -> None:
    """The earliest first, without what starts later; it is in the plan no more until it is put back, or done."""
    plan = Plan()
    plan.put(schedule(name="minute", active_since=at(1)), at(1))
    plan.put(schedule(20, name="often", active_since=at(1)), at(1))
    plan.put(schedule(80, name="later", active_since=at(1)), at(1))
    assert plan.take_ahead(at(19)) == {}
    ahead = plan.take_ahead(at(60))
    ((often,), (minute,)) = ahead.values()
    assert [(each.schedule.name, each.start_at) for each in (often, minute)] == [("often", at(20)), ("minute", at(60))]
    assert list(ahead) == [at(20), at(60)]
    assert plan.next_at() == at(80)
    plan.put_back(minute)
    assert plan.next_at() == at(60)
    assert plan.has(often)
    plan.remove("often")
    assert not plan.has(often)
    plan.put_back(often)
    assert plan.next_at() == at(60)


def test_planning_anew_after_the_clock_was_set_back() -> None:
    """One look at a clock that was a month ahead must not silence a schedule for a month."""
    plan = Plan()
    plan.put(schedule(active_since=at(1)), at(1))
    (entry,) = plan.take(at(30 * 86_400))
    plan.done(entry)
    assert plan.take(at(120)) == []
    plan.replan(at(120))
    assert [entry.due_at for entry in plan.take(at(120))] == [at(120)]


def test_a_change_replaces_what_was_planned() -> None:
    """Neither the old instants nor the entry in flight come back."""
    plan = Plan()
    plan.put(schedule(active_since=at(1)), at(1))
    (old,) = plan.take(at(60))
    plan.put(schedule(3_600, active_since=at(61)), at(61))
    plan.done(old)
    assert plan.take(at(120)) == []
    assert plan.next_at() == at(3_600)
    plan.remove("s")
    assert plan.next_at() is None
    assert plan.names() == set()


def test_what_was_edited_is_forgotten() -> None:
    """A schedule that somebody changes every second costs no more memory than one: the entries of its versions do not pile up."""
    plan = Plan()
    plan.put(schedule(name="first"), NOON)
    for number in range(1_000):
        plan.put(schedule(86_400 + number, active_since=at(1), sites=("home", "office")), at(1))
    assert sum(isinstance(each, Entry) for each in gc.get_objects()) <= 2 * 3 + 2
    assert plan.take(at(60))[0].schedule.name == "first"


def test_paused_is_not_planned() -> None:
    """A paused schedule has no next instant."""
    plan = Plan()
    plan.put(schedule(enabled=False), NOON)
    assert plan.next_at() is None


def test_sites_named_twice_are_ticked_once() -> None:
    """A list with a repetition is a typing error, not two runs."""
    plan = Plan()
    plan.put(schedule(sites=("home", "office", "home"), active_since=at(1)), at(1))
    assert sorted(entry.site for entry in plan.take(at(60))) == ["home", "office"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400), st.booleans()), max_size=30))
def test_whatever_is_edited_each_instant_goes_out_at_most_once(steps: list[tuple[int, int, bool]]) -> None:
    """Edits, pauses and time passing in any order: no (schedule, instant) is taken twice, and none that is not due."""
    # between two instants: one at the very moment of an edit is due again, and the stream refuses it
    plan, now, published = Plan(), at(1.5), set()
    for number, seconds, enabled in steps:
        plan.put(schedule(30 + number, name=f"s{number}", enabled=enabled, active_since=now), now)
        now += timedelta(seconds=seconds)
        for entry in plan.take(now):
            key = (entry.schedule.name, entry.due_at)
            assert key not in published
            assert entry.due_at <= now
            published.add(key)
            plan.done(entry)


def test_a_tick_expires_at_the_next_instant_or_when_it_is_told_to() -> None:
    """An hourly run that nobody can start for ten minutes is missed if the schedule says so, else at the next hour."""
    for within, expires in ((600, at(600)), (86_400, at(3_600))):
        plan = Plan()
        plan.put(schedule(3_600, start_within_s=within, active_since=at(-1)), at(-1))
        (entry,) = plan.take(at(0))
        assert tick_of(entry, at(0.01)).expires_at - expires < timedelta(seconds=1)


def test_a_caught_up_tick_has_time_to_be_run() -> None:
    """It was due long ago; its time to be started counts from now."""
    plan = Plan()
    plan.put(schedule(3_600, start_within_s=60), at(1_800))
    (entry,) = plan.take(at(1_800))
    assert tick_of(entry, at(1_800)).expires_at == at(1_860)


def test_replicas_make_the_same_run() -> None:
    """Who publishes, and when, is not part of the id."""
    ids = set()
    for now in (at(60), at(60.5)):
        plan = Plan()
        plan.put(schedule(active_since=at(1)), at(1))
        (entry,) = plan.take(now)
        ids.add(tick_of(entry, now).run_id)
    assert len(ids) == 1


def walked(plan: Plan, now: datetime) -> list[float]:
    """Publish everything that is due now, and return the instants in seconds after noon."""
    found: list[float] = []
    while taken := plan.take(now):
        for entry in taken:
            found.append((entry.due_at - NOON).total_seconds())
            plan.done(entry)
    return found


@pytest.mark.parametrize(
    ("catch_up", "within_s", "expected"),
    [
        ("none", 86_400, []),
        ("latest", 86_400, [300]),
        ("latest", 20, []),
        ("all", 86_400, [60, 120, 180, 240, 300]),
        ("all", 150, [180, 240, 300]),
        ("all", 0, []),
    ],
)
def test_what_passed_is_caught_up_as_the_schedule_says(catch_up: str, within_s: int, expected: list[float]) -> None:
    """Both after a start, and when a running machine had slept; the ordinary instants follow."""
    given = schedule(active_since=at(1), catch_up=catch_up, catch_up_within_s=within_s)
    started, slept = Plan(), Plan()
    started.put(given, at(325))
    slept.put(given, at(1))
    for plan in (started, slept):
        assert walked(plan, at(325)) == expected
        assert walked(plan, at(360)) == [360]


def test_without_catching_up_a_busy_moment_loses_nothing() -> None:
    """A few seconds late is not missed."""
    plan = Plan()
    plan.put(schedule(active_since=at(1), catch_up="none"), at(1))
    assert walked(plan, at(63)) == [60]


def test_a_run_starts_after_its_spread_and_its_jitter() -> None:
    """The instant stays what it is; the tick says when it was to start, and expires when the next one starts."""
    plan, given = Plan(), schedule(3_600, active_since=at(1), spread_s=600, jitter_s=60)
    plan.put(given, at(1))
    start = start_of(given, "home", at(3_600))
    assert at(3_600) < start < at(3_600 + 660)
    assert plan.next_at() == start
    assert plan.take(start - timedelta(milliseconds=1)) == []
    (entry,) = plan.take(start)
    tick = tick_of(entry, start)
    assert (tick.due_at, tick.start_at, tick.trigger) == (at(3_600), start, "schedule")
    assert tick.expires_at == min(start + timedelta(hours=1), start_of(given, "home", at(7_200)))


def test_a_restart_between_instant_and_start_loses_nothing() -> None:
    """What is spread has not started yet: it is neither caught up nor left out."""
    for catch_up in ("none", "latest", "all"):
        given = schedule(3_600, active_since=at(1), spread_s=3_000, catch_up=catch_up)
        start = start_of(given, "home", at(3_600))
        plan = Plan()
        plan.put(given, start - timedelta(seconds=1))
        (entry,) = plan.take(start)
        assert (entry.due_at, tick_of(entry, start).trigger) == (at(3_600), "schedule")


def test_runs_that_are_all_caught_up_do_not_end_each_other() -> None:
    """Each has the time that its schedule gives a run, though the next instant is near."""
    plan = Plan()
    plan.put(schedule(active_since=at(1), catch_up="all", start_within_s=600), at(325))
    (entry,) = plan.take(at(325))
    assert tick_of(entry, at(325)).expires_at == at(925)


@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
@pytest.mark.parametrize("every_s", [1, 60, 3_600, 43_200])
def test_a_tick_is_remembered_as_long_as_a_new_scheduler_would_publish_it(catch_up: str, every_s: int) -> None:
    """Whenever one starts: either it does not take that instant, or the stream still has its tick and refuses a second one."""
    given = schedule(every_s, active_since=at(0), catch_up=catch_up, start_within_s=600)
    plan = Plan()
    plan.put(given, at(0))
    (entry,) = plan.take(at(0))
    tick = tick_of(entry, at(0))
    assert tick.due_at == at(0)
    forgotten = at(0) + lifetime(tick, given)
    for hours in range(48):
        later = forgotten + timedelta(hours=hours)
        plan = Plan()
        plan.put(given, later)
        assert all(entry.due_at > tick.due_at for entry in plan.take(later))


def test_a_tick_is_not_remembered_for_longer_than_it_must_be() -> None:
    """10,000 ticks a minute are 29 million in two days."""
    plan = Plan()
    plan.put(schedule(active_since=at(0)), at(0))
    (entry,) = plan.take(at(0))
    assert lifetime(tick_of(entry, at(0)), entry.schedule) == timedelta(minutes=6)


def test_when_nothing_more_is_due_nothing_is_planned() -> None:
    """One instant, and no other."""
    plan = Plan()
    plan.put(schedule(timing=Once(at=at(60)), active_since=at(1)), at(1))
    assert walked(plan, at(100)) == [60]
    assert plan.next_at() is None
    assert plan.names() == {"s"}


@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
def test_a_run_with_more_spread_than_is_caught_up_starts_in_time(catch_up: str) -> None:
    """How far back is caught up counts from the start of a run: else one that starts an hour after its instant never would."""
    made = schedule(86_400, spread_s=3_600, jitter_s=600, catch_up=catch_up, catch_up_within_s=0)
    due_at = NOON + timedelta(hours=12)
    start_at = start_of(made, "home", due_at)
    plan = Plan()
    plan.put(made, at(60))
    assert start_at > due_at + timedelta(seconds=60)
    assert plan.take(start_at - timedelta(seconds=1)) == []
    (entry,) = plan.take(start_at)
    assert (entry.due_at, tick_of(entry, start_at).trigger) == (due_at, "schedule")


def broken(**fields: Any) -> Schedule:
    """Return a schedule that no validation lets through: its instants cannot be worked out."""
    return schedule(**fields).model_copy(update={"timing": Interval.model_construct(every_s=0, phase_s=0)})


@pytest.mark.parametrize("when", ["put", "replan", "take", "ticks", "done"])
def test_a_schedule_that_cannot_be_worked_out_is_left_out(when: str) -> None:
    """At whatever step that shows: the others are run on, and it is told which one is not."""
    plan = Plan()
    for name in ("bad", "good"):
        plan.put(schedule(name=name, active_since=at(1)), at(1))
    if when == "put":
        plan.put(broken(name="bad"), at(2))
    taken = plan.take(at(60)) if when == "ticks" else []
    for entry in (*taken, *((each[2] for each in plan._heap) if when in {"take", "replan"} else ())):
        if entry.schedule.name == "bad":
            entry.schedule = broken(name="bad")
    if when == "replan":
        plan.replan(at(2))
    taken = taken or plan.take(at(60))
    for entry, *_ in plan.ticks(taken, at(60)):
        if entry.schedule.name == "bad":
            entry.schedule = broken(name="bad")
        plan.done(entry)
    assert [entry.schedule.name for entry in plan.take(at(120))] == ["good"]
    assert (plan.names(), plan.broken()) == ({"good"}, {"bad"})
    plan.put(schedule(name="bad", active_since=at(121)), at(121))
    assert (plan.names(), plan.broken()) == ({"good", "bad"}, set())


async def test_a_schedule_that_cannot_be_worked_out_is_counted_as_invalid() -> None:
    """The scheduler goes on following; once the schedule is gone it counts no more."""
    registry = CollectorRegistry()
    counted: list[tuple[float | None, ...]] = []

    async def changes() -> AsyncIterator[Snapshot | Change]:
        for names in (("bad", "good"), ("good",)):
            yield Snapshot(tuple(Change(name, broken(name=name) if name == "bad" else schedule(name=name)) for name in names))
            counted.append(tuple(registry.get_sample_value("refresher_schedules", {"state": state}) for state in ("enabled", "invalid")))

    await Scheduler(Metrics(registry)).follow(changes())
    assert counted == [(1, 1), (1, 0)]


class Published(NamedTuple):
    """A tick that went out: when, its subject, and whether it had been handed over in a batch that was open already."""

    at: datetime
    subject: str
    was_open: bool


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Published]:
    """Have ticks published nowhere but in a list."""
    found: list[Published] = []

    async def publish_together(client: None, js: None, stream: str, messages: Sequence[Message], batch: Batch | None = None) -> list[bool]:
        assert batch is None or batch._messages == messages
        found.extend(Published(datetime.now(UTC), message.subject, batch is not None) for message in messages)
        return [True] * len(messages)

    async def opened(client: None, stream: str, messages: Sequence[Message]) -> Batch:
        return Batch(cast("Client", client), stream, messages)

    monkeypatch.setattr(app, "publish_together", publish_together)
    monkeypatch.setattr(Batch, "opened", opened)
    return found


async def published_by(start_at: datetime, *changes: Snapshot | Change) -> None:
    """Let a scheduler work until shortly after a moment; these changes come one after the other once it has looked at its plan."""
    scheduler = Scheduler(Metrics(CollectorRegistry()))

    async def told() -> AsyncIterator[Snapshot | Change]:
        for change in changes:
            yield change
            await asyncio.sleep(0.1)

    publishing = asyncio.create_task(scheduler.publish(None, None))  # type: ignore[arg-type]
    await scheduler.follow(told())
    await asyncio.sleep((start_at - datetime.now(UTC)).total_seconds() + 0.3)
    publishing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await publishing


def soon(*names: str) -> tuple[datetime, Snapshot]:
    """Return an instant that is a second away, and schedules that are due at it."""
    start_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    made = [schedule(name=name, timing=Once(at=start_at), active_since=NOON - timedelta(days=900)) for name in names]
    return start_at, Snapshot(tuple(Change(each.name, each) for each in made))


async def test_what_was_made_ahead_is_published_at_its_start(published: list[Published], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not before; and it was made once."""
    made: list[Tick] = []
    message = app._message
    monkeypatch.setattr(app, "_message", lambda entry, tick, remembered: made.append(tick) or message(entry, tick, remembered))
    start_at, snapshot = soon(*NAMES)
    await published_by(start_at, snapshot)
    assert sorted(each.subject for each in published) == [subjects.tick("home", name, start_at) for name in NAMES]
    assert all(each.at >= start_at and each.was_open for each in published)
    assert len(made) == len(NAMES)


async def test_what_changed_after_it_was_made_is_not_published(published: list[Published]) -> None:
    """Removed or paused a moment before its start, it does not run; one that was only edited runs as it is now."""
    start_at, snapshot = soon("edited", "paused", "removed", *NAMES)
    of = {change.name: change.schedule for change in snapshot.changes}
    paused, edited = (
        of[name].model_copy(update=update) for name, update in (("paused", {"enabled": False}), ("edited", {"sites": ("office",)}))
    )  # type: ignore[union-attr]
    await published_by(start_at, snapshot, Change("removed", None), Change("paused", paused), Change("edited", edited))
    assert sorted(each.subject for each in published) == [
        *(subjects.tick("home", name, start_at) for name in NAMES),
        subjects.tick("office", "edited", start_at),
    ]
    assert not any(each.was_open for each in published), "what had been handed over held others, too"


@pytest.mark.parametrize(("setting", "value"), [("ON_TIME_S", 0.0), ("OPEN_AT_MOST", 0)])
async def test_what_is_not_published_as_it_was_made_is_taken_when_it_is_due(
    published: list[Published], monkeypatch: pytest.MonkeyPatch, setting: str, value: float
) -> None:
    """Who wakes up too late asks the plan again; and where enough is open at the server already, nothing is made ahead."""
    monkeypatch.setattr(app, setting, value)
    start_at, snapshot = soon(*NAMES)
    await published_by(start_at, snapshot)
    assert sorted(each.subject for each in published) == [subjects.tick("home", name, start_at) for name in NAMES]
    assert all(each.at >= start_at and not each.was_open for each in published)


async def test_what_was_published_makes_room_for_the_next(published: list[Published], monkeypatch: pytest.MonkeyPatch) -> None:
    """Instant after instant is made ahead, with no more than two of them open."""
    monkeypatch.setattr(app, "OPEN_AT_MOST", 2)
    now = datetime.now(UTC).replace(microsecond=0)
    every_second = [schedule(1, name=name, active_since=now) for name in NAMES]
    await published_by(now + timedelta(seconds=5), Snapshot(tuple(Change(each.name, each) for each in every_second)))
    for second in (3, 4, 5):
        subject = subjects.tick("home", NAMES[0], now + timedelta(seconds=second))
        assert [each.was_open for each in published if each.subject == subject] == [True]


async def test_few_are_not_made_ahead(published: list[Published]) -> None:
    """They are taken when they are due, with whatever else is."""
    start_at, snapshot = soon("one", "other")
    await published_by(start_at, snapshot)
    assert sorted(each.subject for each in published) == [subjects.tick("home", name, start_at) for name in ("one", "other")]
    assert all(each.at >= start_at and not each.was_open for each in published)


async def test_the_collector_of_garbage_does_not_look_through_the_plan() -> None:
    """With 100,000 schedules that would hold up every tick for a quarter of a second now and then; what was edited is still forgotten."""

    async def changes() -> AsyncIterator[Snapshot | Change]:
        yield Snapshot(tuple(Change(f"s{number}", schedule(name=f"s{number}")) for number in range(50)))
        assert not any(isinstance(each, Entry) for each in gc.get_objects())

    gc.collect()
    scheduler = Scheduler(Metrics(CollectorRegistry()))
    try:
        await scheduler.follow(changes())
        assert gc.get_freeze_count() > 50
    finally:
        gc.unfreeze()
