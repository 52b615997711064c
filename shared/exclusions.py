"""Times in which nothing is due."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from shared.schedules import DAYS, Exclusion, Period, Weekly


def around(exclusions: tuple[Exclusion, ...], moment: datetime) -> tuple[datetime, datetime] | None:
    """Return the beginning (inclusive) and the end (exclusive) of an exclusion that a moment lies in, or None."""
    for exclusion in exclusions:
        found = _period(exclusion, moment) if isinstance(exclusion, Period) else _weekly(exclusion, moment)
        if found:
            return found
    return None


def _period(exclusion: Period, moment: datetime) -> tuple[datetime, datetime] | None:
    return (exclusion.since, exclusion.until) if exclusion.since <= moment < exclusion.until else None


def _weekly(exclusion: Weekly, moment: datetime) -> tuple[datetime, datetime] | None:
    zone = ZoneInfo(exclusion.zone)
    today = moment.astimezone(zone).date()
    start, end = time.fromisoformat(exclusion.start), time.fromisoformat(exclusion.end)
    for day in (today, today - timedelta(days=1)):  # one that began yesterday may go past midnight
        if DAYS[day.weekday()] in exclusion.days:
            begins = datetime.combine(day, start, zone).astimezone(UTC)
            ends = datetime.combine(day if end > start else day + timedelta(days=1), end, zone).astimezone(UTC)
            if begins <= moment < ends:
                return begins, ends
    return None
