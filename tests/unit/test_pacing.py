"""How often an engine may run: M-Lab's rule for `ndt7`."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared.history import spec
from shared.schedules import HISTORY, Schedule, ScheduleSpec

RANDOM = {"kind": "random", "mean_s": 21_600}


@pytest.mark.parametrize(
    "timing",
    [
        RANDOM,
        {"kind": "random", "mean_s": 86_400},
        {"kind": "interval", "every_s": 21_600},
        {"kind": "cron", "expression": "30 3 * * *"},
        {"kind": "once", "at": "2026-12-24T18:00:00Z"},
        {"kind": "manual"},
    ],
)
def test_seldom_is_allowed(timing: dict[str, Any]) -> None:
    """Six hours apart or more, at random or not, and whatever does not repeat; the usual bounds of six hours at random are M-Lab's."""
    spec = ScheduleSpec.model_validate({"engine": "ndt7", "timing": timing})
    if timing is RANDOM:
        assert getattr(spec.timing, "bounds_s")() == (2_160, 54_000)  # noqa: B009 - only Random has it


@pytest.mark.parametrize(
    "timing",
    [
        {"kind": "random", "mean_s": 21_599, "min_s": 2_160},
        {"kind": "random", "mean_s": 21_600, "min_s": 2_159},
        {"kind": "interval", "every_s": 3_600},
        {"kind": "cron", "expression": "0 * * * *"},
        {"kind": "cron", "expression": "0,5 3 * * *"},
    ],
)
@pytest.mark.parametrize("place", ["engine", "fallback"])
def test_often_is_refused_with_what_to_do(timing: dict[str, Any], place: str) -> None:
    """Also as a fallback: while the first engine fails, it would run as often as the schedule does."""
    engines: dict[str, Any] = {"engine": "ndt7"} if place == "engine" else {"fallback": {"engine": "ndt7"}}
    with pytest.raises(ValidationError, match=r"too often.*--random 6h"):
        ScheduleSpec.model_validate({**engines, "timing": timing})


def test_an_own_server_and_other_engines_have_no_such_rule() -> None:
    """They are nobody else's to spare."""
    timing = {"kind": "interval", "every_s": 60}
    ScheduleSpec.model_validate({"engine": "ndt7", "options": {"server": "ws://ndt.lan"}, "timing": timing})
    ScheduleSpec.model_validate({"engine": "noop", "timing": timing})


def test_what_ran_against_a_server_of_ones_own_is_read_from_the_history() -> None:
    """The history keeps no options, so it cannot say that there was such a server: what was allowed is not judged again."""
    given = {"name": "own", "engine": "ndt7", "options": {"server": "ws://ndt.lan"}, "active_since": "2026-01-01T00:00:00Z"}
    schedule = Schedule.model_validate({**given, "timing": {"kind": "interval", "every_s": 60}})
    kept = spec(schedule)
    with pytest.raises(ValidationError, match="too often"):
        Schedule.model_validate_json(kept)
    assert Schedule.model_validate_json(kept, context=HISTORY).timing == schedule.timing
