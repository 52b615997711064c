"""From when on a result is missing: the last run but two that was due, whatever the timing."""

from datetime import UTC, datetime, timedelta
from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from services.api.overdue import awaited_since
from shared.due import instants
from shared.schedules import Cron, Interval, Schedule

NOW = datetime(2026, 11, 23, 10, 30, tzinfo=UTC)  # a Monday
LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)


def schedule(timing: Interval | Cron, active_since: datetime = LONG_AGO, **fields: object) -> Schedule:
    """Return a schedule of the engine noop with this timing."""
    return Schedule(**{"name": "s", "engine": "noop", "timing": timing, "active_since": active_since, **fields})  # type: ignore[arg-type]


@given(
    st.builds(Interval, every_s=st.integers(1, 90_000), phase_s=st.none() | st.integers(0, 90_000))
    | st.builds(
        Cron,
        expression=st.sampled_from(("* * * * *", "*/7 * * * *", "0 * * * *", "0 9-17 * * 1-5", "30 2 * * *", "0 0 1 * *")),
        zone=st.sampled_from(("UTC", "Europe/Berlin", "Australia/Lord_Howe")),
    ),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    st.integers(0, 400),
)
def test_it_is_the_last_instant_but_two(timing: Interval | Cron, now: datetime, runs: int) -> None:
    """The same as walking through every instant since the schedule applies; nothing while fewer than three were due."""
    active_since = now - (timedelta(seconds=timing.every_s) if isinstance(timing, Interval) else timedelta(minutes=5)) * runs
    watched = schedule(timing, active_since)
    due = list(takewhile(lambda instant: instant <= now, instants(watched, "home", active_since - timedelta(days=1))))
    assert awaited_since([watched], now) == ({("home", None, "noop"): due[-3]} if len(due) >= 3 else {})


def test_hours_of_rest_are_no_silence() -> None:
    """On Monday morning the second run of a working day looks back to Friday's last: a weekend is not overdue."""
    working_days = schedule(Cron(expression="0 9-17 * * 1-5"))
    assert awaited_since([working_days], NOW) == {("home", None, "noop"): datetime(2026, 11, 20, 17, tzinfo=UTC)}


def test_schedules_of_a_line_count_together_and_paused_ones_not() -> None:
    """What several schedules ask of one site and engine is one expectation; each other site and engine has its own."""
    hourly, half_past = (Cron(expression=f"{minute} * * * *") for minute in (0, 20))
    due = awaited_since(
        [
            schedule(hourly, sites=("home", "office")),
            schedule(half_past, sites=("home",)),
            schedule(half_past, engine="speedtest"),
            schedule(half_past, engine="other", enabled=False),
        ],
        NOW,
    )
    assert due == {
        ("home", None, "noop"): datetime(2026, 11, 23, 9, 20, tzinfo=UTC),
        ("office", None, "noop"): datetime(2026, 11, 23, 8, 0, tzinfo=UTC),
        ("home", None, "speedtest"): datetime(2026, 11, 23, 8, 20, tzinfo=UTC),
    }
