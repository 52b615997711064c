"""What a person types, read: durations, moments, and the options of an engine."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import typer

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9}[smhdw])+", re.ASCII)
_WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAYS = rf"(?:{'|'.join(_WEEK)})(?:-(?:{'|'.join(_WEEK)}))?"
_EXCLUSION = re.compile(rf"(?:(?P<days>{_DAYS}(?:,{_DAYS})*) )?(?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)", re.ASCII)


def duration_s(text: str) -> int:
    """Return the seconds that `90s`, `15m`, `1h30m`, `1d` or `2w` stand for.

    Raises: typer.BadParameter for anything else; a bare number is refused, for nobody knows its unit.
    """
    if not _DURATION.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is not a duration: write a number and a unit, such as 90s, 15m, 1h30m, 1d or 2w.")
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([smhdw])", text))


def duration(seconds: int) -> str:
    """Return the shortest text that `duration_s` reads as so many seconds."""
    parts = []
    for unit, size in reversed(_SECONDS.items()):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def moment(text: str) -> datetime:
    """Return the moment, in UTC, that a duration ago (`7d`), a date or a date and time stands for; without a zone it is local.

    Raises: typer.BadParameter for anything else.
    """
    try:
        if _DURATION.fullmatch(text):
            return datetime.now(UTC) - timedelta(seconds=duration_s(text))
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no moment: write how long ago (7d, 12h) or a date (2026-03-29, 2026-03-29T14:00Z)."
        ) from None


def exact_moment(text: str) -> str:
    """Return a date, or a date and time, as RFC 3339 writes it in UTC; without a zone it is local.

    Raises: typer.BadParameter for anything else.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no date: write 2026-12-24, 2026-12-24T14:00 or 2026-12-24T14:00Z.") from None


def exclusion(text: str, zone: str | None) -> dict[str, Any]:
    """Return the times that a text leaves out: `mon-fri 09:00-17:00`, `22:00-06:00` or `2026-12-24/2026-12-27`.

    Raises: typer.BadParameter for anything else.
    """
    since, slash, until = text.partition("/")
    if slash:
        return {"kind": "period", "from": exact_moment(since.strip()), "to": exact_moment(until.strip())}
    if not (found := _EXCLUSION.fullmatch(text.strip().lower())):
        raise typer.BadParameter(
            f"{text!r} is no time to leave out: write 'mon-fri 09:00-17:00', 'sat,sun 00:00-00:00', '22:00-06:00' "
            "or a period, 2026-12-24/2026-12-27.",
            param_hint="'--exclude'",
        )
    days = [day for part in (found["days"] or "mon-sun").split(",") for day in _days(*part.split("-"))]
    return {"kind": "weekly", "days": days, "start": found["start"], "end": found["end"], **({"zone": zone} if zone else {})}


def _days(first: str, last: str | None = None) -> list[str]:
    """Return the days from one to another, past Sunday where they go on."""
    start = _WEEK.index(first)
    return [_WEEK[(start + n) % 7] for n in range((_WEEK.index(last or first) - start) % 7 + 1)]


def options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the engine options in `key=value` pairs; a value that is JSON is read as JSON, any other is text.

    Raises: typer.BadParameter for a pair without `=`, a key given twice, and JSON that is broken.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"{pair!r} is not key=value.", param_hint="'--option'")
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice: write a list as JSON, {key}='[1, 2]'.", param_hint="'--option'")
        found[key] = _value(key, value)
    return found


def _value(key: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if text[:1] in {"{", "[", '"'}:  # meant as JSON: sent as text it would only be refused later, and less clearly
            raise typer.BadParameter(f"the value of {key!r} is broken JSON: {error}.", param_hint="'--option'") from None
    return text


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
