"""When a schedule is due: pure, so proved for any time, zone and change of the clocks."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.due import following, instants, latest
from shared.schedules import Cron, Interval, Schedule

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

moments = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
intervals = st.builds(Interval, every_s=st.integers(1, 90_000), phase_s=st.none() | st.integers(0, 90_000))
crons = st.builds(
    Cron,
    expression=st.sampled_from(
        (
            "* * * * *",
            "*/15 * * * *",
            "0 * * * *",
            "30 2 * * *",
            "30 1 * * *",
            "15 0,2,12 * * *",
            "0 9 * * 1-5",
            "0 0 1 * *",
            "59 23 31 12 *",
        )
    ),
    zone=st.sampled_from(ZONES),
)


def schedule(timing: Interval | Cron, active_since: datetime = LONG_AGO) -> Schedule:
    """Return a schedule with this timing."""
    return Schedule(name="s", timing=timing, active_since=active_since)


@given(intervals | crons, moments)
def test_instants_come_in_order_and_after_the_given_moment(timing: Interval | Cron, after: datetime) -> None:
    """No instant is due twice, none goes back in time, and none is the moment itself."""
    found = list(islice(instants(schedule(timing), "home", after), 5))
    assert all(instant > after for instant in found)
    assert all(one < other for one, other in pairwise(found))
    assert all(instant.utcoffset() == timedelta(0) and instant.microsecond == 0 for instant in found)


@given(intervals | crons, moments, st.timedeltas(timedelta(0), timedelta(days=2)))
def test_what_follows_does_not_depend_on_where_one_asks(timing: Interval | Cron, after: datetime, step: timedelta) -> None:
    """Replicas that start at different times agree: between a moment and the next instant nothing else is due."""
    first = following(schedule(timing), "home", after)
    assert first
    asked_later = min(after + step, first - timedelta(microseconds=1))
    assert following(schedule(timing), "home", asked_later) == first


@given(intervals | crons, moments, st.timedeltas(timedelta(0), timedelta(hours=30)))
def test_the_latest_is_the_last_of_all_instants_in_the_period(timing: Interval | Cron, after: datetime, period: timedelta) -> None:
    """Catching up finds the same instant that walking through all of them would."""
    every = timing.every_s if isinstance(timing, Interval) else 60
    after += timedelta(0) if every >= 60 else period  # a short interval over a long time: too many to walk through
    until = after + (period if every >= 60 else min(period, timedelta(minutes=5)))
    walked = list(takewhile(lambda instant: instant <= until, instants(schedule(timing), "home", after)))
    assert latest(schedule(timing), "home", after, until) == (walked[-1] if walked else None)


@given(intervals, moments)
def test_an_interval_never_drifts(timing: Interval, after: datetime) -> None:
    """Every instant is a whole number of periods from the first, however long ago that was."""
    found = list(islice(instants(schedule(timing), "home", after), 4))
    assert {(other - one).total_seconds() for one, other in pairwise(found)} == {timing.every_s}
    if timing.phase_s is not None:
        assert all((instant.timestamp() - timing.phase_s) % timing.every_s == 0 for instant in found)


@given(st.text("abcdefgh", min_size=1, max_size=8), st.sampled_from((600, 3_600, 86_400)))
def test_a_spread_interval_stays_clear_of_the_top_of_the_period(site: str, every_s: int) -> None:
    """A fleet of sites with the same hourly schedule does not test at the top of the hour."""
    due = following(schedule(Interval(every_s=every_s)), site, LONG_AGO)
    assert due
    assert 0.1 * every_s - 1 <= due.timestamp() % every_s <= 0.9 * every_s


def test_sites_are_spread_evenly() -> None:
    """A thousand sites with one schedule fill the hour: no tenth of the allowed time has more than a fifth of them."""
    seconds = [following(schedule(Interval(every_s=3600)), f"site-{n}", LONG_AGO).timestamp() % 3600 for n in range(1_000)]  # type: ignore[union-attr]
    tenths = [sum(360 + 288 * n <= second < 360 + 288 * (n + 1) for second in seconds) for n in range(10)]
    assert sum(tenths) == 1_000
    assert max(tenths) < 200


@given(crons, moments)
def test_a_cron_instant_reads_as_the_expression_says_on_the_clock_of_its_zone(timing: Cron, after: datetime) -> None:
    """The minute on the wall is one that the expression names, unless the spring change has just swallowed it."""
    due = following(schedule(timing), "home", after)
    assert due
    local = due.astimezone(ZoneInfo(timing.zone))
    minutes = timing.expression.split()[0]
    named = set(range(60)) if minutes == "*" else set(range(0, 60, 15)) if minutes == "*/15" else {int(minutes)}
    jumped = local.utcoffset() != (due - timedelta(hours=3)).astimezone(ZoneInfo(timing.zone)).utcoffset()
    assert local.minute in named or jumped


@pytest.mark.parametrize(
    ("zone", "gap_day", "offset_before", "offset_after"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29), 1, 2),
        ("America/New_York", datetime(2026, 3, 8), -5, -4),
        ("America/St_Johns", datetime(2026, 3, 8), -3.5, -2.5),
    ],
)
def test_a_time_that_the_spring_change_skips_runs_once_right_after_it(
    zone: str, gap_day: datetime, offset_before: float, offset_after: float
) -> None:
    """02:30 does not exist on that day; the run is not lost, and not doubled."""
    daily = schedule(Cron(expression="30 2 * * *", zone=zone))
    start = (gap_day - timedelta(hours=12)).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    first, second = islice(instants(daily, "home", start), 2)
    assert first == (gap_day + timedelta(hours=2) - timedelta(hours=offset_before)).replace(tzinfo=UTC)
    assert second == (gap_day + timedelta(days=1, hours=2.5) - timedelta(hours=offset_after)).replace(tzinfo=UTC)


@pytest.mark.parametrize(("zone", "fold_day"), [("Europe/Berlin", datetime(2026, 10, 25)), ("America/New_York", datetime(2026, 11, 1))])
def test_a_time_that_the_autumn_change_repeats_runs_once(zone: str, fold_day: datetime) -> None:
    """A fixed time that the clock shows twice is due once on that day."""
    hour = 2 if zone == "Europe/Berlin" else 1
    daily = schedule(Cron(expression=f"30 {hour} * * *", zone=zone))
    start = fold_day.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    on_that_day = [
        instant for instant in islice(instants(daily, "home", start), 3) if instant.astimezone(ZoneInfo(zone)).date() == fold_day.date()
    ]
    assert len(on_that_day) == 1


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_an_hourly_cron_runs_every_hour_through_the_autumn_change(zone: str) -> None:
    """The repeated hour is measured too: no gap of two hours."""
    hourly = schedule(Cron(expression="0 * * * *", zone=zone))
    for day in (
        datetime(2026, 3, 8),
        datetime(2026, 3, 29),
        datetime(2026, 4, 5),
        datetime(2026, 10, 4),
        datetime(2026, 10, 25),
        datetime(2026, 11, 1),
    ):
        found = list(islice(instants(hourly, "home", day.replace(tzinfo=UTC) - timedelta(hours=20)), 60))
        assert max(other - one for one, other in pairwise(found)) <= timedelta(hours=1, minutes=30)


def test_nothing_is_due_before_a_schedule_became_active() -> None:
    """What was created or resumed now owes nothing for the past; its first instant may be this very moment."""
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    hourly = schedule(Interval(every_s=3600, phase_s=0), active_since=noon)
    assert latest(hourly, "home", noon - timedelta(days=1), noon - timedelta(seconds=1)) is None
    assert following(hourly, "home", noon - timedelta(days=1)) == noon
    assert latest(hourly, "home", noon - timedelta(days=1), noon) == noon


def test_a_cron_that_never_comes_is_refused() -> None:
    """31 February is a mistake to be told, not a schedule that silently never runs."""
    with pytest.raises(ValueError, match="day-of-month"):
        Cron(expression="0 0 31 2 *")


@pytest.mark.parametrize("expression", ["* * * *", "* * * * * *", "61 * * * *", "", "a b c d e"])
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    """Six fields, four, or nonsense: told with the reason."""
    with pytest.raises(ValueError, match="cron expression"):
        Cron(expression=expression)


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "../etc/passwd", "/etc/localtime", "Europe"])
def test_what_is_no_zone_is_refused(zone: str) -> None:
    """A zone is an IANA name."""
    with pytest.raises(ValueError, match="time zone"):
        Cron(expression="0 0 * * *", zone=zone)
