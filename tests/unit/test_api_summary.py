"""The borders of buckets, on the clocks of real zones."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.summary import Size, _edges

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "America/Havana",
    "Africa/Cairo",
)
moments = st.datetimes(datetime(1975, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))


@given(moments, st.integers(1, 40 * 86_400), st.sampled_from(get_args(Size)), st.sampled_from(ZONES))
def test_borders_cover_the_period(since: datetime, seconds: int, size: Size, zone: str) -> None:
    """From the first moment to the last, without a gap or an empty bucket, and never longer than the calendar allows."""
    until = since + timedelta(seconds=seconds)
    edges = list(_edges(since, until, size, ZoneInfo(zone)))
    assert (edges[0], edges[-1]) == (since, until)
    assert all(earlier < later for earlier, later in pairwise(edges))
    # a change of the clock makes a bucket longer by at most the hours that it is set back
    longest = {"none": 10**9, "hour": 3_600, "day": 27 * 3_600, "week": 171 * 3_600, "month": 747 * 3_600}[size]
    assert all((later - earlier).total_seconds() <= longest for earlier, later in pairwise(edges))


@given(moments, st.sampled_from(("day", "week", "month")), st.sampled_from(ZONES))
def test_borders_are_midnights(since: datetime, size: Size, zone: str) -> None:
    """Each border inside is the first moment of a day, a Monday or a first of a month, where the zone's clock says so."""
    for edge in list(_edges(since, since + timedelta(days=70), size, ZoneInfo(zone)))[1:-1]:
        local = edge.astimezone(ZoneInfo(zone))
        assert (edge - timedelta(microseconds=1)).astimezone(ZoneInfo(zone)).date() < local.date()
        assert size != "week" or local.weekday() == 0 or zone == "Pacific/Apia"  # which left out a Friday, once
        assert size != "month" or local.day == 1


@pytest.mark.parametrize(
    ("since", "until", "size", "zone", "expected"),
    [
        # spring and autumn in Berlin: days of 23 and 25 hours
        ("2026-03-28T23:00Z", "2026-03-30T22:00Z", "day", "Europe/Berlin", ["28T23:00", "29T22:00", "30T22:00"]),
        ("2026-10-24T22:00Z", "2026-10-26T23:00Z", "day", "Europe/Berlin", ["24T22:00", "25T23:00", "26T23:00"]),
        # the hour that comes twice is two buckets
        ("2026-10-25T00:00Z", "2026-10-25T02:00Z", "hour", "Europe/Berlin", ["25T00:00", "25T01:00", "25T02:00"]),
        # hours of Kathmandu begin at a quarter past in UTC
        ("2026-10-25T00:00Z", "2026-10-25T01:30Z", "hour", "Asia/Kathmandu", ["25T00:00", "25T00:15", "25T01:15", "25T01:30"]),
        # Samoa left out 30 December 2011: one border, not two
        ("2011-12-29T10:00Z", "2011-12-31T10:00Z", "day", "Pacific/Apia", ["29T10:00", "30T10:00", "31T10:00"]),
        ("2026-01-31T12:00Z", "2026-03-01T12:00Z", "month", "UTC", ["31T12:00", "01T00:00", "01T00:00", "01T12:00"]),
        ("2026-10-02T12:00Z", "2026-10-06T12:00Z", "week", "UTC", ["02T12:00", "05T00:00", "06T12:00"]),
        ("2026-10-02T12:00Z", "2026-10-06T12:00Z", "none", "UTC", ["02T12:00", "06T12:00"]),
    ],
)
def test_borders_that_were_worked_out_by_hand(since: str, until: str, size: Size, zone: str, expected: list[str]) -> None:
    """Changes of the clock, odd offsets and a day that never was."""
    edges = _edges(datetime.fromisoformat(since), datetime.fromisoformat(until), size, ZoneInfo(zone))
    assert [edge.strftime("%dT%H:%M") for edge in edges] == expected
