"""The bucket of schedules: read, and written only where nobody else wrote meanwhile (compare and set)."""

from dataclasses import dataclass
from datetime import UTC, datetime

from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue
from pydantic import ValidationError

from services.api.bus import Bus
from services.api.problems import ProblemError, refused
from shared import subjects
from shared.schedules import WHEN, Once, Schedule, ScheduleSpec

_WRONG_REVISION = {10071, 10164}
"""The server's codes for a revision that is not the last one."""


@dataclass(frozen=True)
class Stored:
    """What is in the bucket under a name."""

    name: str
    revision: int
    schedule: Schedule | None
    """None when the value is no schedule: anybody can write to the bucket with the NATS command line."""
    reason: str = ""
    """Why it is none."""


async def everything(bus: Bus) -> list[Stored]:
    """Return all that is in the bucket, in order of the names."""
    return [_stored(entry) for entry in await bus.entries(subjects.SCHEDULES)]


async def find(bus: Bus, name: str) -> Stored | None:
    """Return what is under a name, or None."""
    with bus.reached():
        try:
            return _stored(await (await bus.bucket(subjects.SCHEDULES)).get(name))
        except KeyNotFoundError:
            return None


async def schedule_of(bus: Bus, name: str) -> tuple[Schedule, int]:
    """Return a schedule and its revision.

    Raises: ProblemError 404 when there is none, or when what is there is no schedule.
    """
    stored = await find(bus, name)
    if stored is None:
        raise ProblemError(404, f"There is no schedule {name!r}.")
    if stored.schedule is None:
        raise ProblemError(404, f"What is stored as {name!r} is no schedule ({stored.reason}): replace it with PUT, or delete it.")
    return stored.schedule, stored.revision


async def create(bus: Bus, schedule: Schedule) -> int:
    """Store a new schedule and return its revision.

    Raises: ProblemError 409 when there is one of this name.
    """
    with bus.reached():
        try:
            return await (await bus.bucket(subjects.SCHEDULES)).create(schedule.name, schedule.model_dump_json().encode())
        except KeyWrongLastSequenceError:
            raise ProblemError(409, f"There is a schedule {schedule.name!r} already: change it with PUT.") from None


async def replace(bus: Bus, schedule: Schedule, revision: int) -> int:
    """Store a schedule in place of a revision and return the new one.

    Raises: ProblemError 409 when that revision is no longer the last.
    """
    with bus.reached():
        try:
            return await (await bus.bucket(subjects.SCHEDULES)).update(schedule.name, schedule.model_dump_json().encode(), last=revision)
        except KeyWrongLastSequenceError:
            raise _changed(schedule.name) from None


async def delete(bus: Bus, name: str, revision: int) -> None:
    """Delete a schedule.

    Raises: ProblemError 409 when that revision is no longer the last.
    """
    with bus.reached():
        try:
            await (await bus.bucket(subjects.SCHEDULES)).delete(name, last=revision)
        except APIError as error:
            if error.err_code in _WRONG_REVISION:
                raise _changed(name) from None
            raise


def applied(name: str, spec: ScheduleSpec, before: Schedule | None) -> Schedule:
    """Return the schedule that a spec makes of what was there before.

    It applies from now on when it is new or resumed, or when what says when it is due changed: nothing earlier is due.
    Raises: ProblemError 422 when its only instant has passed.
    """
    now = datetime.now(UTC)
    if isinstance(spec.timing, Once) and spec.timing.at <= now and (before is None or spec.timing != before.timing):
        raise refused("timing.at", "is in the past: it would never run")
    fields = {field: getattr(spec, field) for field in ScheduleSpec.model_fields}
    if before is None:
        return Schedule(name=name, active_since=now, **fields)
    begins = (spec.enabled and not before.enabled) or any(fields[field] != getattr(before, field) for field in WHEN)
    return Schedule(name=name, active_since=now if begins else before.active_since, **fields)


def _changed(name: str) -> ProblemError:
    return ProblemError(409, f"Somebody else changed the schedule {name!r} at the same time: read it again.")


def _stored(entry: KeyValue.Entry) -> Stored:
    revision = entry.revision or 0
    try:
        schedule = Schedule.model_validate_json(entry.value or b"")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return Stored(entry.key, revision, None, ": ".join([*map(str, first["loc"]), first["msg"]]))
    if schedule.name != entry.key:
        return Stored(entry.key, revision, None, f"its name is {schedule.name}")
    return Stored(entry.key, revision, schedule)
