"""When a schedule is due: pure, so proved for any time, zone and change of the clocks."""

import json
import time
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.due import following, instants, last_started, latest, same_everywhere, start_of
from shared.schedules import LATEST, Cron, Exclusion, Interval, Manual, Once, Period, Random, Schedule, Weekly, read

SITES = tuple(f"site-{number}" for number in range(100))
A_DAY_OFF = (Weekly(days=("sun",), start="00:00", end="00:00"),)
A_DAY_BUT_AN_HOUR = (Weekly(start="01:00", end="00:00"),)
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


randoms = st.builds(Random, mean_s=st.integers(60, 7_200))
exclusions = st.lists(
    st.builds(
        Weekly,
        days=st.lists(st.sampled_from(("mon", "tue", "fri", "sun")), min_size=1, max_size=3).map(tuple),
        start=st.sampled_from(("00:00", "01:30", "09:00", "22:15")),
        end=st.sampled_from(("00:00", "02:30", "06:00", "17:45")),
        zone=st.sampled_from(ZONES),
    )
    | st.builds(lambda since, days: Period(since=since, until=since + days), moments, st.timedeltas(timedelta(1), timedelta(40))),
    max_size=3,
).map(tuple)


def schedule(timing: Interval | Cron | Random | Once | Manual, active_since: datetime = LONG_AGO, **fields: Any) -> Schedule:
    """Return a schedule with this timing."""
    return Schedule(name="s", timing=timing, active_since=active_since, **fields)


@given(intervals | crons | randoms, moments)
def test_instants_come_in_order_and_after_the_given_moment(timing: Interval | Cron | Random, after: datetime) -> None:
    """No instant is due twice, none goes back in time, and none is the moment itself."""
    found = list(islice(instants(schedule(timing), "home", after), 5))
    assert all(instant > after for instant in found)
    assert all(one < other for one, other in pairwise(found))
    assert all(instant.utcoffset() == timedelta(0) and instant.microsecond == 0 for instant in found)


@given(intervals | crons | randoms, moments, st.timedeltas(timedelta(0), timedelta(days=2)))
def test_what_follows_does_not_depend_on_where_one_asks(timing: Interval | Cron | Random, after: datetime, step: timedelta) -> None:
    """Replicas that start at different times agree: between a moment and the next instant nothing else is due."""
    first = following(schedule(timing), "home", after)
    assert first
    asked_later = min(after + step, first - timedelta(microseconds=1))
    assert following(schedule(timing), "home", asked_later) == first


@given(intervals | crons | randoms, moments, st.timedeltas(timedelta(0), timedelta(hours=30)))
def test_the_latest_is_the_last_of_all_instants_in_the_period(timing: Interval | Cron | Random, after: datetime, period: timedelta) -> None:
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


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "../etc/passwd", "/etc/localtime", "Europe", "localtime", "posixrules"])
def test_what_is_no_zone_is_refused(zone: str) -> None:
    """A zone is an IANA name."""
    with pytest.raises(ValueError, match="time zone"):
        Cron(expression="0 0 * * *", zone=zone)


@given(randoms, moments)
def test_random_gaps_keep_their_bounds(timing: Random, after: datetime) -> None:
    """Whatever is drawn, over several pages: no gap is shorter or longer than was asked for."""
    shortest, longest = timing.bounds_s()
    found = list(islice(instants(schedule(timing), "home", after), 120))
    gaps = [(other - one).total_seconds() for one, other in pairwise(found)]
    assert shortest <= min(gaps)
    assert max(gaps) <= longest


def test_random_gaps_are_exponential_and_differ_by_site() -> None:
    """Between the bounds the gaps are what a Poisson process has; each site has its own."""
    timing = Random(mean_s=600, min_s=1, max_s=6_000)
    home, office = (list(islice(instants(schedule(timing), site, LONG_AGO), 20_000)) for site in ("home", "office"))
    gaps = sorted((other - one).total_seconds() for one, other in pairwise(home))
    assert sum(gaps) / len(gaps) == pytest.approx(600, rel=0.03)
    assert gaps[len(gaps) // 2] == pytest.approx(600 * 0.6931, rel=0.05), "the median of an exponential distribution"
    assert sum(gap > 1_200 for gap in gaps) / len(gaps) == pytest.approx(0.1353, rel=0.1)
    assert len(set(home) & set(office)) < 200


@pytest.mark.parametrize(
    "fields", [{"min_s": 90}, {"max_s": 59}, {"max_s": 601}, {"min_s": 50, "max_s": 70}, {"min_s": 0}, {"mean_s": 9}, {"mean_s": "60"}]
)
def test_bounds_that_leave_no_room_are_refused(fields: dict[str, int]) -> None:
    """With the reason."""
    with pytest.raises(ValueError, match=r"bounds|max_s|greater|number"):
        Random(**{"mean_s": 60, **fields})


@given(intervals | crons | randoms, exclusions, moments, st.timedeltas(timedelta(0), timedelta(hours=30)))
def test_nothing_is_due_in_an_exclusion_and_all_else_is(
    timing: Interval | Cron | Random, excluded: tuple[Exclusion, ...], after: datetime, period: timedelta
) -> None:
    """Against every instant of the same schedule without exclusions, each looked at by the clock of the exclusion's zone."""
    if isinstance(timing, Interval) and timing.every_s < 60:
        period = min(period, timedelta(minutes=5))
    until = after + period
    every = list(takewhile(lambda instant: instant <= until, instants(schedule(timing), "home", after)))
    wanted = [instant for instant in every if not any(_excludes(each, instant) for each in excluded)]
    limited = schedule(timing, exclusions=excluded)
    assert list(takewhile(lambda instant: instant <= until, instants(limited, "home", after))) == wanted
    assert latest(limited, "home", after, until) == (wanted[-1] if wanted else None)


def _excludes(exclusion: Exclusion, instant: datetime) -> bool:
    if isinstance(exclusion, Period):
        return exclusion.since <= instant < exclusion.until
    wall = instant.astimezone(ZoneInfo(exclusion.zone))
    time, days = f"{wall:%H:%M}", ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    today, yesterday = days[wall.weekday()] in exclusion.days, days[wall.weekday() - 1] in exclusion.days
    if exclusion.start < exclusion.end:
        return today and exclusion.start <= time < exclusion.end
    return (today and time >= exclusion.start) or (yesterday and time < exclusion.end)


def test_a_schedule_that_is_excluded_for_ever_is_never_due() -> None:
    """The search ends."""
    never = schedule(Cron(expression="* * * * *"), exclusions=(Weekly(start="00:00", end="00:00"),))
    assert following(never, "home", LONG_AGO) is None
    assert latest(never, "home", LONG_AGO, LONG_AGO + timedelta(days=30)) is None


@given(
    st.sampled_from(("0 0 29 2 *", "59 23 31 12 *", "* 5 1 1 *", "*/20 2,3 1 */2 *", "30 2 * * 0#5")),
    st.sampled_from(ZONES),
    moments,
    st.timedeltas(timedelta(0), timedelta(days=1_800)),
)
def test_the_latest_of_what_comes_rarely_is_found(expression: str, zone: str, after: datetime, period: timedelta) -> None:
    """However far back it lies, and however many lie close together there."""
    made = schedule(Cron(expression=expression, zone=zone))
    walked = list(takewhile(lambda instant: instant <= after + period, instants(made, "home", after)))
    assert latest(made, "home", after, after + period) == (walked[-1] if walked else None)


def test_what_comes_rarely_is_found_at_once() -> None:
    """Twenty yearly schedules, for which the API looks back a year each time that Prometheus asks."""
    now, started = datetime(2026, 6, 1, 12, tzinfo=UTC), time.process_time()
    for minute in range(20):
        made = schedule(Cron(expression=f"{minute} 3 1 8 *", zone="Europe/Rome"))
        assert latest(made, "home", now - timedelta(days=366), now) == datetime(2025, 8, 1, 1, minute, tzinfo=UTC)
    assert time.process_time() - started < 0.8


def test_what_is_excluded_for_years_may_end() -> None:
    """Only what days of the week exclude for a year goes on for ever: not a long period, nor one between days of the week."""
    years = Period(since=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2031, 1, 1, tzinfo=UTC))
    days = Weekly(days=("mon", "tue", "wed", "thu", "fri", "sat"), start="00:00", end="00:00")
    minutes = Cron(expression="* * * * *")
    assert following(schedule(minutes, exclusions=(days, years)), "home", years.since) == datetime(2031, 1, 5, tzinfo=UTC)
    assert latest(schedule(minutes, exclusions=(days, years)), "home", LONG_AGO, years.until) == datetime(2025, 12, 28, 23, 59, tzinfo=UTC)
    a_minute = (Weekly(days=("wed",), start="11:00", end="12:00"), Weekly(start="10:01", end="10:00"))
    wednesday = datetime(2026, 1, 7, 10, 0, tzinfo=UTC)
    assert following(schedule(minutes, exclusions=a_minute), "home", wednesday) == wednesday + timedelta(days=1)
    a_week_but_tuesday = Weekly(days=("mon", "wed", "thu", "fri", "sat", "sun"), start="00:00", end="00:00")
    tuesdays = (datetime(2026, 1, 6, tzinfo=UTC) + week * timedelta(days=7) for week in range(40))
    mosaic = (a_week_but_tuesday, *(Period(since=day, until=day + timedelta(days=1)) for day in tuesdays))
    assert following(schedule(minutes, exclusions=mosaic), "home", years.since) == datetime(2026, 10, 13, tzinfo=UTC)


@given(intervals | crons | randoms, moments, st.integers(1, 12), st.booleans())
def test_after_so_many_runs_nothing_is_due(timing: Interval | Cron | Random, since: datetime, runs: int, excludes: bool) -> None:
    """They are counted from when the schedule became active, not from where one asks; what is excluded does not count."""
    excluded = (Weekly(days=("mon",), start="00:00", end="12:00"), Weekly(start="17:00", end="17:02")) if excludes else ()
    unlimited = schedule(timing, active_since=since, exclusions=excluded)
    limited = schedule(timing, active_since=since, exclusions=excluded, max_runs=runs)
    wanted = list(islice(instants(unlimited, "home", LONG_AGO), runs))
    assert latest(limited, "home", LONG_AGO, wanted[0]) == wanted[0], "it is known of the first before the others are counted"
    assert list(instants(limited, "home", LONG_AGO)) == wanted
    assert following(limited, "home", wanted[-1]) is None
    end = wanted[-1] + timedelta(seconds=max(1, getattr(timing, "every_s", 60) * 3))
    assert latest(limited, "home", wanted[0] - timedelta(seconds=1), end) == wanted[-1]


@given(intervals | crons, moments, st.timedeltas(timedelta(seconds=1), timedelta(hours=5)))
def test_nothing_is_due_outside_of_the_validity(timing: Interval | Cron, start: datetime, length: timedelta) -> None:
    """The first instant may be due, the last may not: two schedules that follow each other share none."""
    end = start + length
    if isinstance(timing, Interval) and timing.every_s < 60:
        end = start + min(length, timedelta(minutes=5))
    valid = list(instants(schedule(timing, valid_from=start, valid_until=end), "home", LONG_AGO))
    every = instants(schedule(timing), "home", start - timedelta(microseconds=1))
    assert valid == list(takewhile(lambda instant: instant < end, every))


def test_once_is_due_once() -> None:
    """At its instant; never when that had passed as the schedule was made."""
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    once = Once(at=noon.astimezone(ZoneInfo("Asia/Kathmandu")))
    assert list(instants(schedule(once), "home", LONG_AGO)) == [noon]
    assert following(schedule(once), "home", noon) is None
    assert latest(schedule(once), "home", LONG_AGO, noon) == noon
    assert latest(schedule(once), "home", LONG_AGO, noon - timedelta(seconds=1)) is None
    assert list(instants(schedule(once, active_since=noon + timedelta(seconds=1)), "home", LONG_AGO)) == []
    with pytest.raises(ValueError, match="whole second"):
        Once(at=noon.replace(microsecond=1))


def test_manual_is_never_due() -> None:
    """Only when somebody asks."""
    assert following(schedule(Manual()), "home", LONG_AGO) is None
    assert latest(schedule(Manual()), "home", LONG_AGO, datetime(2030, 1, 1, tzinfo=UTC)) is None


def test_a_start_is_spread_by_site_and_jittered_by_run() -> None:
    """The spread of a site is always the same, the jitter is not; both stay below what was asked for, and nobody rolls dice."""
    hourly = schedule(Interval(every_s=3600, phase_s=0), spread_s=600, jitter_s=60)
    due = list(islice(instants(hourly, "home", LONG_AGO), 200))
    late = [(start_of(hourly, "home", each) - each).total_seconds() for each in due]
    assert late == [(start_of(hourly, "home", each) - each).total_seconds() for each in due]
    assert 0 <= min(late) <= max(late) < 660
    assert 45 < max(late) - min(late) < 60
    spread = [(start_of(schedule(hourly.timing, spread_s=600), f"site-{n}", due[0]) - due[0]).total_seconds() for n in range(500)]
    assert min(spread) < 20
    assert max(spread) > 580
    assert sum(spread) / len(spread) == pytest.approx(300, abs=40)
    assert start_of(schedule(hourly.timing), "home", due[0]) == due[0]


def test_what_is_the_same_at_all_sites() -> None:
    """Only then may one site's instants stand for all."""
    assert same_everywhere(schedule(Cron(expression="0 * * * *")))
    assert same_everywhere(schedule(Interval(every_s=60, phase_s=0)))
    assert not same_everywhere(schedule(Interval(every_s=60)))
    assert not same_everywhere(schedule(Random(mean_s=60)))
    assert not same_everywhere(schedule(Cron(expression="0 * * * *"), spread_s=1))
    assert not same_everywhere(schedule(Cron(expression="0 * * * *"), jitter_s=1))


@pytest.mark.parametrize(
    "timing",
    [
        Interval(every_s=366 * 86_400),
        Interval(every_s=30 * 86_400, phase_s=0),
        Random(mean_s=366 * 86_400),
        Cron(expression="0 0 1 1 *", zone="America/New_York"),
        Once(at=LATEST - timedelta(seconds=1)),
    ],
)
@pytest.mark.parametrize("max_runs", [None, 10_000])
def test_the_last_instant_is_before_the_year_2200(timing: Interval | Random | Cron | Once, max_runs: int | None) -> None:
    """Whatever is asked for, from whatever time on: it ends there, and no date is reached that does not exist."""
    made = schedule(timing, max_runs=max_runs, spread_s=86_400)
    *_, last = instants(made, "home", LONG_AGO)
    assert LATEST - timedelta(seconds=30 * 366 * 86_400) < last < LATEST
    assert following(made, "home", last) is None
    assert latest(made, "home", LATEST - timedelta(days=4_000), LATEST) == last
    assert start_of(made, "home", last) < LATEST + timedelta(days=2)


def test_times_at_both_ends_are_worked_out() -> None:
    """The first and the last moment that a schedule may have are moments like any other."""
    first, last = datetime(1970, 1, 1, tzinfo=UTC), LATEST - timedelta(seconds=1)
    hourly = Interval(every_s=3_600)
    excluded = schedule(hourly, exclusions=(Period(since=first, until=last),))
    assert following(excluded, "home", LONG_AGO) is None
    assert latest(excluded, "home", LONG_AGO, datetime(2026, 1, 1, tzinfo=UTC)) is None
    assert latest(schedule(hourly, first, exclusions=(Period(since=first, until=LONG_AGO),)), "home", first, LONG_AGO) is None
    assert following(schedule(hourly, valid_from=last), "home", LONG_AGO) is None
    assert following(schedule(hourly), "home", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)) is None
    assert following(schedule(hourly, valid_until=first), "home", LONG_AGO) is None


@pytest.mark.parametrize("year", ["0001", "1969", "2200", "9999"])
def test_times_near_the_ends_of_the_calendar_are_refused(year: str) -> None:
    """Also where a schedule is read: one written into the bucket by hand is told to be invalid, and is not run."""
    moment = f"{year}-12-31T23:59:59Z"
    since, until = sorted((moment, "2026-01-01T00:00:00Z"))
    timing, period = {"kind": "once", "at": moment}, {"kind": "period", "from": since, "to": until}
    stored: dict[str, Any] = {"name": "s", "timing": {"kind": "manual"}, "active_since": "2026-01-01T00:00:00Z"}
    for fields in ({"timing": timing}, {"valid_from": moment}, {"valid_until": moment}, {"active_since": moment}, {"exclusions": [period]}):
        with pytest.raises(ValueError, match="outside of the years 1970 to 2199"):
            read("s", json.dumps({**stored, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"valid_from": LONG_AGO, "valid_until": LONG_AGO}, "valid_until must be after"),
        ({"fallback": {"engine": "speedtest"}}, "same engine"),
        ({"exclusions": [{"kind": "period", "from": LONG_AGO, "to": LONG_AGO}]}, "after `from`"),
        ({"exclusions": [{"kind": "weekly", "start": "25:00", "end": "06:00"}]}, "pattern"),
        ({"exclusions": [{"kind": "weekly", "days": [], "start": "05:00", "end": "06:00"}]}, "at least 1"),
        ({"priority": 10}, "less than or equal to 9"),
        ({"timing": Interval(every_s=60), "jitter_s": 60}, "less than the shortest time between two runs, 60 s"),
        ({"timing": Cron(expression="*/5 9 * * 1"), "jitter_s": 300}, "300 s: they would overtake"),
        ({"timing": Interval(every_s=60), "spread_s": 61}, "spread_s must be at most the shortest time between two runs, 60 s"),
        ({"timing": Interval(every_s=60), "max_runs": 201, "sites": SITES, "exclusions": A_DAY_OFF}, "max_runs must be at most 200 "),
        ({"timing": Interval(every_s=60, phase_s=0), "max_runs": 6_667, "exclusions": A_DAY_OFF * 3}, "max_runs must be at most 6666 "),
        ({"timing": Random(mean_s=60), "max_runs": 201, "sites": SITES}, "max_runs must be at most 200 "),
        ({"timing": Random(mean_s=600), "jitter_s": 60}, "60 s: they would overtake"),
        ({"max_runs": 0}, "greater than or equal to 1"),
        ({"overlap": "sometimes"}, "queue_one"),
        ({"catch_up": "some"}, "latest"),
        ({"labels": ["A B"]}, "pattern"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any], told: str) -> None:
    """With a reason that says what would."""
    with pytest.raises(ValueError, match=told):
        schedule(**{"timing": Manual(), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"timing": Interval(every_s=60), "max_runs": 10_000, "sites": SITES},
        {"timing": Interval(every_s=60), "max_runs": 200, "sites": SITES, "exclusions": A_DAY_OFF},
        {"timing": Interval(every_s=60), "max_runs": 400, "exclusions": [{"kind": "weekly", "start": "03:00", "end": "03:01"}] * 50},
        {"timing": Random(mean_s=3_600), "max_runs": 200, "sites": SITES},
        {"timing": Cron(expression="7 3 * * *", zone="Europe/Berlin"), "max_runs": 10_000, "exclusions": A_DAY_OFF},
        {"timing": Cron(expression="* * * * *", zone="Europe/Paris"), "exclusions": [{"kind": "weekly", "start": "00:00", "end": "00:00"}]},
        {"timing": Cron(expression="* * * * *", zone="Europe/Vienna"), "max_runs": 10_000, "sites": SITES},
        {"timing": Cron(expression="* * * * *", zone="Europe/Oslo"), "max_runs": 10_000, "exclusions": A_DAY_BUT_AN_HOUR},
        {"timing": Cron(expression="7 3 * * *", zone="Europe/Malta"), "max_runs": 10_000, "exclusions": A_DAY_BUT_AN_HOUR},
        {"timing": Interval(every_s=10), "spread_s": 10, "sites": SITES},
    ],
)
def test_what_the_limits_allow_is_worked_out_at_once(fields: dict[str, Any]) -> None:
    """The next instant and the last ones of all sites, by a schedule that is months old: services do nothing else meanwhile."""
    now = datetime(2026, 6, 1, 12, tzinfo=UTC)
    made = schedule(active_since=now - timedelta(days=120), **fields)
    started = time.process_time()
    for site in made.sites:
        following(made, site, now)
        last = latest(made, site, now - timedelta(days=366), now)
        last_started(made, site, now - timedelta(days=2), last or now)
    assert time.process_time() - started < 0.8
