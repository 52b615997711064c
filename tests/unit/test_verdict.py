"""What becomes of a run without a row: pure decisions."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.recorder.open_runs import OpenRun
from services.recorder.verdict import Later, Nobodys, Present, verdict
from shared.events import ANY, Failure

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)
PATIENCE = timedelta(seconds=20)
HOME = ("home", None)


def run(**fields: Any) -> OpenRun:
    """Return a run of an hour ago whose tick was seen, and has expired long ago."""
    due_at = NOW - timedelta(hours=1)
    known = {
        "run_id": uuid4(),
        "due_at": due_at,
        "site": "home",
        "line": None,
        "schedule": "hourly",
        "trigger": "schedule",
        "engine": "noop",
    }
    times = {"start_at": due_at, "expires_at": NOW - timedelta(minutes=1), "tick_until": due_at + timedelta(minutes=5)}
    return OpenRun(**{**known, **times, "is_certain": True, "withdrawn": None, "tick_sequence": 100, "is_watched": True, **fields})


def present(**fields: Any) -> Present:
    """Return that a runner is there, idle, and has ended none of these ticks."""
    seen = {"now": NOW, "runners": frozenset({HOME}), "leaves": frozenset(), "busy": frozenset(), "acknowledged": {HOME: 99}}
    return Present(**{**seen, "has_scheduler": False, **fields})


LTE = ("home", "lte")
AWAY = ("office", "lte")
LEAF = {"leaves": frozenset({"home"}), "acknowledged": {}}
NO_TICK: dict[str, Any] = {"expires_at": None, "tick_sequence": None}
PAUSED = {**NO_TICK, "withdrawn": "the schedule was paused at noon"}


@pytest.mark.parametrize(
    ("fields", "who", "kind", "told"),
    [
        ({}, {}, "expired", "the runner of site home"),
        ({"line": "lte"}, {"runners": frozenset({LTE}), "acknowledged": {LTE: 99}}, "expired", "line lte of site home"),
        (
            {},
            {"runners": frozenset({LTE})},
            "runner_offline",
            "no runner of site home was there to start it before 2026-10-01 11:59:00 UTC",
        ),
        ({"line": "lte"}, {}, "no_runner", "REFRESHER_SITE=home REFRESHER_LINE=lte"),
        ({}, {"acknowledged": {}, "runners": frozenset()}, "no_runner", "never been a runner of site home"),
        ({}, {"acknowledged": {}}, "expired", "the runner of site home"),
        ({}, {"acknowledged": {HOME: 100}}, "lost", "refresher dead list"),
        ({"line": ANY}, {"runners": frozenset({LTE}), "acknowledged": {LTE: 100}}, "expired", "no line of site home took it"),
        ({"line": ANY}, {"runners": frozenset({AWAY}), "acknowledged": {LTE: 99}}, "runner_offline", "of any line of site home was there"),
        ({"line": ANY}, {"runners": frozenset({AWAY}), "acknowledged": {AWAY: 99}}, "no_runner", "REFRESHER_SITE=home, or"),
        ({}, {**LEAF, "runners": frozenset()}, "runner_offline", "no runner of site home is heard of"),
        ({}, LEAF, "lost", "site home has a NATS server of its own, and no word of this run came from it, although a runner of site home"),
        (NO_TICK, {**LEAF, "runners": frozenset()}, "runner_offline", "what it measured takes the place of this row"),
        (NO_TICK, {}, "scheduler_down", "refresher doctor"),
        ({**NO_TICK, "is_watched": False}, {}, "lost", "nobody recorded"),
        (PAUSED, {}, "changed", "was paused at noon, before this run was to start at 2026-10-01 11:00:00 UTC: if it is still wanted"),
        ({"withdrawn": "the schedule was paused"}, {}, "expired", "the runner of site home"),
    ],
)
def test_why_nobody_ran_it(fields: dict[str, Any], who: dict[str, Any], kind: str, told: str) -> None:
    """Each reason is what was seen, names the place, and says what to do."""
    decided = verdict(run(**fields), present(**who), PATIENCE, may_be_published=False)
    assert isinstance(decided, Failure)
    assert decided.kind == kind
    assert told in decided.message


def test_as_long_as_a_row_may_come_nothing_is_decided() -> None:
    """A run that is being measured, a tick that has not expired or only just, an instant that a scheduler may still catch up."""
    busy = run()
    assert verdict(busy, present(busy=frozenset({busy.run_id})), PATIENCE, may_be_published=False) == Later(NOW + PATIENCE)
    for late_s in (-60, 0, 19):
        expires_at = NOW - timedelta(seconds=late_s)
        assert verdict(run(expires_at=expires_at), present(), PATIENCE, may_be_published=False) == Later(expires_at + PATIENCE)
    assert verdict(run(**NO_TICK), present(), PATIENCE, may_be_published=True) == Later(NOW + PATIENCE)


def test_a_scheduler_that_is_there_and_did_not_publish_it_will_not() -> None:
    """After its time to do so nobody waits for it."""
    decided = verdict(run(**NO_TICK), present(has_scheduler=True), PATIENCE, may_be_published=True)
    assert isinstance(decided, Failure)
    assert decided.kind == "scheduler_down"


def test_at_the_edge_of_a_change_only_a_tick_makes_a_run() -> None:
    """Without one nobody says that it should have been; with one it ends like any other."""
    assert verdict(run(**NO_TICK, is_certain=False), present(), PATIENCE, may_be_published=True) == Nobodys()
    assert isinstance(verdict(run(is_certain=False), present(), PATIENCE, may_be_published=False), Failure)
