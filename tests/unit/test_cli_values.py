"""What a person types on the command line, read."""

from datetime import UTC, datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from services.cli import values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("1d", 86_400), ("2w", 1_209_600), ("0s", 0)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    """Every unit counts, and several add up."""
    assert values.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "1.5h", "-1h", "1 h", "1h 30m", "1y", "1H", "1h30", "٣h", "9999999999s", "1h\n"])
def test_anything_else_is_no_duration(text: str) -> None:
    """A bare number above all: nobody knows its unit. The message shows how to write one."""
    with pytest.raises(typer.BadParameter, match=r"is not a duration: .*1h30m"):
        values.duration_s(text)


@given(st.integers(0, 10**9))
def test_a_duration_is_read_as_it_is_written(seconds: int) -> None:
    """What a table shows can be typed again."""
    assert values.duration_s(values.duration(seconds)) == seconds


def test_a_moment_is_how_long_ago_or_a_date() -> None:
    """`7d` counts from now; an offset is kept to; what has none is on the local clock."""
    before = datetime.now(UTC)
    assert before <= values.moment("7d") + timedelta(days=7) <= datetime.now(UTC)
    assert values.moment("2026-03-29T14:00+02:00") == datetime(2026, 3, 29, 12, tzinfo=UTC)
    assert values.moment("2026-03-29T14:00Z") == datetime(2026, 3, 29, 14, tzinfo=UTC)
    assert values.moment("2026-03-29") == datetime(2026, 3, 29).astimezone(UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "999999999w", "0001-01-01T00:00+14:00", "29.3.2026"])
def test_anything_else_is_no_moment(text: str) -> None:
    """Out of range or out of form: one message that shows how to write it."""
    with pytest.raises(typer.BadParameter, match=r"is no moment: .*2026-03-29"):
        values.moment(text)


def test_option_values_are_json_where_they_parse() -> None:
    """Numbers, lists and booleans need no quoting; everything else is text, `=` and all."""
    pairs = ["seconds=1.5", "servers=[1, 2]", "secure=true", "none=null", "name=Zürich", "url=http://a/?b=c", "empty=", "odd=NaN", "q=01"]
    assert values.options(pairs) == {
        "seconds": 1.5,
        "servers": [1, 2],
        "secure": True,
        "none": None,
        "name": "Zürich",
        "url": "http://a/?b=c",
        "empty": "",
        "odd": "NaN",
        "q": "01",
    }


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["seconds"], "not key=value"),
        (["=1"], "not key=value"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a=[1,"], "the value of 'a' is broken JSON"),
        (['a={"b": NaN}'], "the value of 'a' is broken JSON"),
        (["a=" + "[" * 100_000], "the value of 'a' is broken JSON"),
    ],
)
def test_a_broken_option_is_named(pairs: list[str], message: str) -> None:
    """What was clearly meant as JSON is not sent as text; nothing is dropped in silence."""
    with pytest.raises(typer.BadParameter, match=message):
        values.options(pairs)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("09:00-17:00", ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]),
        ("mon-fri 09:00-17:00", ["mon", "tue", "wed", "thu", "fri"]),
        ("Sat-Mon,wed 09:00-17:00", ["sat", "sun", "mon", "wed"]),
    ],
)
def test_times_of_the_week_that_are_left_out(text: str, days: list[str]) -> None:
    """Days are a list with ranges, which may go past Sunday; without any it is every day."""
    assert values.exclusion(text, None) == {"kind": "weekly", "days": days, "start": "09:00", "end": "17:00"}
    assert values.exclusion(text, "Europe/Berlin")["zone"] == "Europe/Berlin"


def test_a_period_that_is_left_out() -> None:
    """Two dates, as ISO 8601 writes an interval."""
    found = values.exclusion("2026-12-24T00:00Z/2026-12-27T12:00+01:00", None)
    assert found == {"kind": "period", "from": "2026-12-24T00:00:00+00:00", "to": "2026-12-27T11:00:00+00:00"}


@pytest.mark.parametrize("text", ["", "mon", "mon-fri", "9:00-17:00", "mon- 09:00-10:00", "xyz 09:00-10:00", "2026-12-24/", "/2026-12-24"])
def test_anything_else_leaves_nothing_out(text: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(typer.BadParameter, match="write"):
        values.exclusion(text, None)
