"""From messages to rows: what can be stored is, and what never can be is told, alone, with its reason.

The recorder and `refresher replay` both go this way, so that a replayed row is the row that was recorded.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from nats.aio.msg import Msg
from pydantic import ValidationError

from services.recorder import store
from shared import subjects
from shared.errors import reasons
from shared.events import Result, run_id_of

OLDEST = datetime(2000, 1, 1, tzinfo=UTC)
NEWEST = timedelta(days=1)
"""A due instant outside of these is a broken clock, not a result; a month that nobody lives in gets no partition."""

Insert = Callable[[Sequence[Result]], Awaitable[int]]
M = TypeVar("M")


@dataclass(frozen=True)
class Stored(Generic[M]):
    """Messages whose results are in the table now; so many of them were not there before."""

    messages: Sequence[tuple[M, Result]]
    new: int


@dataclass(frozen=True)
class Refused(Generic[M]):
    """A message that can never be stored, and why."""

    message: M
    reason: str


async def store_each(messages: Sequence[Msg], insert: Insert) -> AsyncIterator[Stored[Msg] | Refused[Msg]]:
    """Store the results in messages and yield what became of them, each message once; what is stored comes first.

    Raises: what `insert` raises, but for store.REFUSED: that is an outcome.
    """
    parsed: list[tuple[Msg, Result]] = []
    refused: list[Refused[Msg]] = []
    for message in messages:
        try:
            parsed.append((message, parse(message.subject, message.data, message.metadata.timestamp)))
        except ValueError as error:
            refused.append(Refused(message, _reason(error)))
    if parsed:
        async for outcome in store_all(parsed, insert):
            yield outcome
    for each in refused:
        yield each


async def store_all(parsed: Sequence[tuple[M, Result]], insert: Insert) -> AsyncIterator[Stored[M] | Refused[M]]:
    """Store the results of messages: where a batch is refused, its halves are tried, down to the one that is at fault."""
    try:
        new = await insert([result for _, result in parsed])
    except store.REFUSED as error:
        if len(parsed) == 1:
            yield Refused(parsed[0][0], _reason(error))
            return
        middle = len(parsed) // 2
        for half in (parsed[:middle], parsed[middle:]):
            async for outcome in store_all(half, insert):
                yield outcome
        return
    yield Stored(parsed, new)


def parse(subject: str, data: bytes, published_at: datetime) -> Result:
    """Return the result in a message.

    The server lets a runner publish on the subjects of its site alone, so what the result says of itself is held against
    the subject: no runner can speak for another site, or take the place of a run there.
    Raises: ValueError when it is no result, is not of that site, or its due instant is absurd.
    """
    result = Result.model_validate_json(data)
    if not subjects.is_result_of(result.site, subject):
        raise ValueError(f"it is of site {result.site} and came on {subject}")
    if not _is_its_own(result):
        raise ValueError(f"{result.run_id} is not the id of that run")
    if not OLDEST <= result.due_at <= published_at + NEWEST:  # the server's clock: this machine's may be wrong
        raise ValueError(f"due_at {result.due_at.isoformat()} is before 2000 or after it was published")
    return result


def _is_its_own(result: Result) -> bool:
    """Return whether the id belongs to this run: it follows from schedule, site and instant, or is random (UUID version 4).

    Instants are whole seconds, and so is what the id is made of: a fraction of one would be another row of the same run.
    """
    if result.trigger == "manual" or result.schedule is None:
        return result.run_id.version == 4
    return not result.due_at.microsecond and result.run_id == run_id_of(result.schedule, result.site, result.due_at)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"not a result: {reasons(error)}"
    return f"cannot be stored: {type(error).__name__}: {error}"
