"""Cursors and times: what goes in comes out, and nothing else gets through."""

from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from services.api.parameters import Moment
from services.api.problems import ProblemError
from services.api.queries import _cursor, _position

MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_cursor_is_a_position(due_at: datetime, run_id: UUID) -> None:
    """Any row's cursor leads back to exactly that row, and is safe in a URL."""
    cursor = _cursor({"due_at": due_at, "run_id": run_id})  # type: ignore[arg-type]
    assert len(cursor) == 32
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert _position(cursor) == (due_at, run_id)


@given(st.text())
def test_no_other_text_is_a_cursor(text: str) -> None:
    """Whatever is not a position is refused, never a defect."""
    with suppress(ProblemError):
        _position(text)


@given(st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30), timezones=st.timezones()))
def test_a_time_keeps_its_instant(moment: datetime) -> None:
    """A time with an offset is that instant, in UTC."""
    text = moment.replace(second=0, microsecond=0)
    if (offset := text.utcoffset()) is not None and offset.total_seconds() % 60 == 0:
        assert MOMENT.validate_python(text.isoformat()) == text.astimezone(UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-10-03",
        "2026-10-03T07:00",
        "2026-10-03T07:00:00",
        "20261003T070000Z",
        "2026-10-03T24:00:01Z",
        "1969-12-31T23:59:59Z",
        "2026-10-03T07:00:00+25:00",
        "2200-01-01T00:00:00Z",
        "٢026-10-03T07:00:00Z",
        "2026-10-03T07:00:00.Z",
        "0000-01-01T00:00:00Z",
        0,
        None,
    ],
)
def test_what_is_no_time_is_refused(text: object) -> None:
    """A date alone, a time without its offset, numbers and impossible times are errors that say how to write one."""
    with pytest.raises(ValidationError):
        MOMENT.validate_python(text)


def test_long_fractions_are_cut() -> None:
    """Nanoseconds are read as the microseconds that Postgres keeps."""
    assert MOMENT.validate_python("2026-10-03t07:00:00.123456789z") == datetime(2026, 10, 3, 7, 0, 0, 123456, UTC)
