"""What was asked for, written down: every revision in the bucket of schedules, and every tick that somebody made by hand.

They are read from the streams one after another, and the place is kept in the database, in the transaction that stores them.
A durable consumer would keep it at the server: a database that is restored or made anew would then lack for good what had
been acknowledged before, and two recorders would be handed the revisions of one schedule in turns, out of order.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from services.recorder import store
from services.recorder.batch import NEWEST, Stored, parse, store_all
from shared import subjects
from shared.buckets import is_removal
from shared.database import Connection
from shared.events import Result, Tick
from shared.history import spec
from shared.schedules import read

log = logging.getLogger(__name__)

AT_ONCE = 500
"""So many messages are stored in one transaction."""

_SCHEDULES = f"KV_{subjects.SCHEDULES}"
_PREFIX = f"$KV.{subjects.SCHEDULES}."


async def read_schedules(connection: Connection, js: JetStreamContext) -> None:
    """Bring the versions of all schedules up to date.

    Raises: nats.errors.Error, asyncpg.PostgresError; what was read before stays.
    """
    while await _read_schedules(connection, js):
        pass


async def read_asked(connection: Connection, js: JetStreamContext) -> None:
    """Bring the runs that were asked for by hand up to date; those without a row are open from then on.

    Raises: nats.errors.Error, asyncpg.PostgresError; what was read before stays.
    """
    while await _read_asked(connection, js):
        pass


@dataclass(frozen=True)
class Recorded:
    """Up to which result of the stream all have their rows, and in which database."""

    database: str
    sequence: int


async def read_results(connection: Connection, js: JetStreamContext, last: Recorded | None) -> Recorded:
    """See that every result that was acknowledged to the stream has its row, and return up to where that is so.

    `last` is what this returned before, None the first time. A recorder acknowledges after the commit, so nothing is read as long as
    it is the same database. But another one in its place, or one that was put back to an earlier state (a copy, a standby that was
    behind), lacks what was acknowledged since.
    Raises: nats.errors.Error, asyncpg.PostgresError; what was read before stays.
    """
    here: str = await connection.fetchval(_DATABASE)
    place = await _place(connection, js, subjects.RESULTS, "results")
    floor = (await js.consumer_info(subjects.RESULTS, subjects.RECORDER)).ack_floor
    until = floor.stream_seq if floor else 0
    sequence, found = place.sequence, 0
    is_behind = place.is_new or last is None or last.database != here or sequence < last.sequence
    while is_behind and not place.is_first:
        messages = [message async for message in _messages(js, subjects.RESULTS, subjects.ALL_RESULTS, sequence, until)]
        if not messages:
            break
        found += await _stored_again(connection, messages)
        sequence = messages[-1].seq or sequence
        await _keep(connection, "results", place, sequence)
    if found:
        log.warning("results that had been acknowledged were not in the database: they are again", extra={"results": found})
    if until > sequence or place.is_new:
        sequence = max(sequence, until)
        await _keep(connection, "results", place, sequence)
    return Recorded(here, sequence)


@dataclass(frozen=True)
class _Place:
    """Where the reading of a stream has come to."""

    made_at: datetime
    sequence: int
    is_new: bool
    """The stream is not the one that was read before: it was made anew, or put back to an earlier state."""
    is_first: bool
    """Nobody has read it before."""


async def _read_schedules(connection: Connection, js: JetStreamContext) -> bool:
    place = await _place(connection, js, _SCHEDULES, "schedules")
    messages = [message async for message in _messages(js, _SCHEDULES, f"{_PREFIX}>", place.sequence)]
    if not messages and not place.is_new:
        return False
    async with connection.transaction():
        if place.is_new:
            await connection.execute(_FLOOR)
            await connection.execute(_GONE)
        await connection.executemany(_VERSION, [_version(message) for message in messages])
        await _keep(connection, "schedules", place, _last(messages, place))
    return len(messages) == AT_ONCE


async def _read_asked(connection: Connection, js: JetStreamContext) -> bool:
    place = await _place(connection, js, subjects.TICKS, "ticks")
    messages = [message async for message in _messages(js, subjects.TICKS, subjects.ALL_MANUAL_TICKS, place.sequence)]
    if not messages and not place.is_new:
        return False
    asked = [row for message in messages if (row := _asked(message))]
    async with connection.transaction():
        await connection.executemany(_ASKED, [row[1:] for row in asked])
        await connection.executemany(_OPEN, asked)
        await _keep(connection, "ticks", place, _last(messages, place))
    return len(messages) == AT_ONCE


async def _place(connection: Connection, js: JetStreamContext, stream: str, what: str) -> _Place:
    info = await js.stream_info(stream)
    row = await connection.fetchrow(f"SELECT {what}_made_at AS made_at, {what}_sequence AS sequence FROM ledger_state")  # noqa: S608 - a name from here
    known_at, sequence = (row["made_at"], row["sequence"]) if row else (None, 0)
    made_at = (info.created or datetime.now(UTC)).astimezone(UTC)
    is_older = known_at == made_at and sequence > info.state.last_seq
    if is_older:
        log.warning("a stream was put back to an earlier state: reading it anew", extra={"stream": stream, "last": info.state.last_seq})
    is_new = is_older or known_at != made_at
    return _Place(made_at, 0 if is_new else sequence, is_new, known_at is None)


def _last(messages: list[RawStreamMsg], place: _Place) -> int:
    return (messages[-1].seq if messages else None) or place.sequence


async def _keep(connection: Connection, what: str, place: _Place, sequence: int) -> None:
    await connection.execute(f"UPDATE ledger_state SET {what}_made_at = $1, {what}_sequence = $2", place.made_at, sequence)  # noqa: S608 - as above


async def _messages(js: JetStreamContext, stream: str, pattern: str, after: int, until: int | None = None) -> AsyncIterator[RawStreamMsg]:
    """Yield the messages on a subject after a sequence, up to another, at most AT_ONCE, as their leader has them."""
    for _ in range(AT_ONCE):
        try:
            message = await js.get_msg(stream, after + 1, pattern, next=True)
        except NotFoundError:
            return
        after = message.seq or after + 1
        if until is not None and after > until:
            return
        yield message


async def _stored_again(connection: Connection, messages: list[RawStreamMsg]) -> int:
    """Store the results in messages, and return how many were not there; what cannot be stored was put aside the first time."""
    parsed: list[tuple[RawStreamMsg, Result]] = []
    for message in messages:
        with suppress(ValueError):
            parsed.append((message, parse(str(message.subject), message.data or b"", message.time or datetime.now(UTC))))
    if not parsed:
        return 0
    outcomes = store_all(parsed, lambda results: store.insert(connection, results))
    return sum([outcome.new async for outcome in outcomes if isinstance(outcome, Stored)])


def _version(message: RawStreamMsg) -> tuple[str, int, datetime, str | None]:
    name = str(message.subject).removeprefix(_PREFIX)
    value = None
    if not is_removal(message.headers):
        try:
            value = spec(read(name, message.data or b""))
        except ValueError as error:  # the scheduler does not run it either
            log.info("a revision of a schedule is invalid", extra={"schedule": name, "revision": message.seq, "reasons": str(error)})
    # what is no name may hold anything, but it is not run
    name = name.encode(errors="backslashreplace").decode().replace("\x00", "")
    return name, message.seq or 0, message.time or datetime.now(UTC), value


def _asked(message: RawStreamMsg) -> tuple[object, ...] | None:
    """Return the columns of a run that somebody asked for, its tick's sequence first; None where there can be no row of it."""
    try:
        tick = Tick.model_validate_json(message.data or b"")
    except ValidationError:
        return None  # the runner puts it aside
    published_at = message.time or datetime.now(UTC)
    is_its_own = message.subject == subjects.manual_tick(tick.site, tick.schedule, tick.run_id) and tick.run_id.version == 4
    if not is_its_own or tick.due_at > published_at + NEWEST:
        log.warning("a tick that was made by hand is not one that could be recorded", extra={"subject": message.subject})
        return None
    return message.seq, tick.run_id, tick.due_at, tick.expires_at, tick.site, tick.line, tick.schedule, tick.engine


_DATABASE = """
SELECT concat_ws(' ', (SELECT oid FROM pg_database WHERE datname = current_database()), pg_postmaster_start_time())
"""
_VERSION = """
INSERT INTO schedule_versions (number, name, revision, since, spec)
SELECT coalesce(max(number), 0) + 1, $1, $2, greatest($3, (SELECT schedules_floor FROM ledger_state)), $4::jsonb FROM schedule_versions
"""
# A database that was restored beside an older bucket: what was in that one then says nothing of the time that is known.
_FLOOR = "UPDATE ledger_state SET schedules_floor = (SELECT max(since) FROM schedule_versions)"
# What is in a bucket that was made anew is read again: what is not ends when that is noticed.
_GONE = """
INSERT INTO schedule_versions (number, name, revision, since, spec)
SELECT (SELECT max(number) FROM schedule_versions) + row_number() OVER (ORDER BY name), name, NULL, clock_timestamp(), NULL
FROM (SELECT DISTINCT ON (name) name, spec FROM schedule_versions ORDER BY name, number DESC) AS latest WHERE spec IS NOT NULL
"""
# Ticks from before the ledger began are nobody's, like instants from before then.
_ASKED = """
INSERT INTO asked_runs (run_id, due_at, expires_at, site, line, schedule, engine)
SELECT $1, $2, $3, $4, $5, $6, $7 FROM ledger_state WHERE $2 >= began_at
ON CONFLICT DO NOTHING
"""
_OPEN = """
INSERT INTO open_runs (tick_sequence, run_id, due_at, expires_at, site, line, schedule, engine, trigger, start_at, is_certain, look_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, 'manual', $3, true, clock_timestamp() FROM ledger_state WHERE $3 >= began_at
ON CONFLICT DO NOTHING
"""
