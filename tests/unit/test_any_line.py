"""Runs for any line of a site: who may ask for them and how, and to whom a line leaves them."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import uuid4

import pytest
from pydantic import ValidationError

from services.runner.claims import LEFT_S, LEFT_TO_FALLBACK_S, left_for_s
from services.runner.settings import RunnerSettings
from shared.events import ANY, Overlap, Tick
from shared.schedules import Manual, ScheduleSpec

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)


def tick(**fields: Any) -> Tick:
    """Return a tick for any line of home."""
    known = {"run_id": uuid4(), "site": "home", "trigger": "manual", "engine": "noop", "line": ANY}
    return Tick(**{**known, "due_at": NOW, "published_at": NOW, "expires_at": NOW + timedelta(hours=1), **fields})


@pytest.mark.parametrize(
    ("asked", "left_s"),
    [
        ({}, 0),
        ({"labels": ("fast",)}, 0),
        ({"engine": "ookla", "fallback": {"engine": "noop"}}, LEFT_S),
        ({"engine": "ookla", "fallback": {"engine": "ndt7"}}, LEFT_TO_FALLBACK_S),
        ({"engine": "ookla"}, LEFT_TO_FALLBACK_S),
        ({"labels": ("fast", "ipv6")}, LEFT_TO_FALLBACK_S),
        ({"labels": ("ipv6",), "engine": "ookla", "fallback": {"engine": "noop"}}, LEFT_TO_FALLBACK_S),
    ],
)
def test_a_line_leaves_a_run_to_those_that_can_measure_it(asked: dict[str, Any], left_s: float) -> None:
    """Not at all where it can itself, for a while where only the fallback is here, and longest where it could only fail."""
    assert left_for_s(tick(**asked), ("noop", "speedtest"), ("fast", "red")) == left_s


@pytest.mark.parametrize("overlap", get_args(Overlap))
def test_only_waiting_can_be_promised_where_no_line_sees_the_others(overlap: str) -> None:
    """The other policies are refused with the reason; for a line with a name, or the one without, each is fine."""
    for line in (None, "lte"):
        ScheduleSpec.model_validate({"timing": Manual(), "line": line, "overlap": overlap})
    if overlap == "queue_all":
        ScheduleSpec.model_validate({"timing": Manual(), "line": ANY, "overlap": overlap})
        return
    with pytest.raises(ValidationError, match=f"overlap must be queue_all, not {overlap}: no line sees what the others"):
        ScheduleSpec.model_validate({"timing": Manual(), "line": ANY, "overlap": overlap})


def test_no_line_is_called_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have runs that are meant for all of them."""
    monkeypatch.setenv("REFRESHER_LINE", ANY)
    with pytest.raises(ValidationError, match="stands for whichever line of a site is free"):
        RunnerSettings()
    monkeypatch.setenv("REFRESHER_LINE", "anything")
    assert RunnerSettings().line == "anything"
