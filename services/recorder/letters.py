"""What was put aside: shown, published again, or dropped, when the API asks for it.

The recorder does it because it may: it publishes results anyway, so the API needs no right to.
"""

import base64
import codecs
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError
from nats.micro.request import Handler, Request, ServiceError
from pydantic import BaseModel, ValidationError

from shared import subjects
from shared.connect import NATS_AWAY
from shared.dead import REASON, SEQUENCE, SIZE, SUBJECT
from shared.errors import reasons
from shared.letters import LONGEST_SHOWN, FullLetter, Letter, LetterPage, Page, Which
from shared.publish import publish
from shared.service import Service

log = logging.getLogger(__name__)

Question = TypeVar("Question", bound=BaseModel)


async def answer(service: Service, js: JetStreamContext) -> None:
    """Answer questions about dead letters for as long as the service runs; of several recorders one answers."""
    await service.answer(subjects.LIST_DEAD, _handler(js, Page, page))
    await service.answer(subjects.GET_DEAD, _handler(js, Which, one))
    await service.answer(subjects.REDRIVE_DEAD, _handler(js, Which, redrive))
    await service.answer(subjects.DROP_DEAD, _handler(js, Which, drop))


async def page(js: JetStreamContext, asked: Page) -> LetterPage:
    """Return the letters after a sequence, the oldest first."""
    found: list[Letter] = []
    after = asked.after
    while len(found) <= asked.limit:  # one more than asked for: it says whether there is a next page
        try:
            stored = await js.get_msg(subjects.DEAD, after + 1, subjects.ALL_DEAD, next=True)
        except NotFoundError:
            break
        letter = _letter(stored)
        after = letter.sequence
        found.append(letter)
    items = found[: asked.limit]
    total = (await js.stream_info(subjects.DEAD)).state.messages
    return LetterPage(items=items, next=items[-1].sequence if len(found) > len(items) else None, total=total)


async def one(js: JetStreamContext, asked: Which) -> FullLetter:
    """Return a letter with the beginning of its content.

    Raises: ServiceError 404 when there is none.
    """
    stored = await _stored(js, asked)
    data = stored.data or b""
    letter = _letter(stored)
    shown = data[:LONGEST_SHOWN]
    is_whole = len(shown) == letter.size_bytes
    encoding, content = _readable(shown, cut=len(shown) < len(data))
    return FullLetter(**letter.model_dump(), encoding=encoding, content=content, is_whole=is_whole)


async def redrive(js: JetStreamContext, asked: Which) -> Letter:
    """Publish a letter again on the subject on which it came, and remove it from the dead letters.

    It is published first: a crash in between leaves it here, and whoever does it again publishes a second copy at worst,
    which the table drops by its key. Shortly after, the server drops it by its id.
    Raises: ServiceError 404 when there is none, 409 when it cannot be published again.
    """
    stored = await _stored(js, asked)
    letter = _letter(stored)
    if letter.obstacle or letter.subject is None:
        raise ServiceError("409", f"Dead letter {letter.sequence} cannot be published again: {letter.obstacle}.")
    message_id = f"redriven:{letter.sequence}:{letter.put_aside_at.timestamp()}"
    await publish(js, subjects.RESULTS, letter.subject, stored.data or b"", message_id)
    await _delete(js, letter.sequence)
    log.info("dead letter published again", extra={"sequence": letter.sequence, "subject": letter.subject})
    return letter


async def drop(js: JetStreamContext, asked: Which) -> None:
    """Remove a letter for good.

    Raises: ServiceError 404 when there is none.
    """
    if not await _delete(js, asked.sequence):
        raise _unknown(asked)
    log.info("dead letter dropped", extra={"sequence": asked.sequence})


def _handler(
    js: JetStreamContext, kind: type[Question], work: Callable[[JetStreamContext, Question], Awaitable[BaseModel | None]]
) -> Handler:
    async def handle(request: Request) -> None:
        try:
            done = await work(js, kind.model_validate_json(request.data))
        except ValidationError as error:
            raise ServiceError("400", reasons(error)) from None
        except NATS_AWAY as error:
            raise ServiceError("503", str(error) or type(error).__name__) from error
        await request.respond(done.model_dump_json().encode() if done else b"")

    return handle


async def _stored(js: JetStreamContext, asked: Which) -> RawStreamMsg:
    try:
        return await js.get_msg(subjects.DEAD, asked.sequence)
    except NotFoundError:
        raise _unknown(asked) from None


async def _delete(js: JetStreamContext, sequence: int) -> bool:
    """Remove a message from the dead letters and return whether it was there."""
    try:
        return await js.delete_msg(subjects.DEAD, sequence)
    except APIError:  # of one that is not there the server says this or that, depending on where it is not
        try:
            await js.get_msg(subjects.DEAD, sequence)
        except NotFoundError:
            return False
        raise


def _unknown(asked: Which) -> ServiceError:
    return ServiceError("404", f"There is no dead letter {asked.sequence}.")


def _letter(stored: RawStreamMsg) -> Letter:
    # whoever may put a letter here may write anything into its headers: it is shown, and believed only where that does no harm
    data, headers = stored.data or b"", {name: _text(value) for name, value in (stored.headers or {}).items()}
    stream = str(stored.subject).rsplit(".", 1)[-1].upper()
    subject = headers.get(SUBJECT)
    size = max(_number(headers.get(SIZE)) or 0, len(data))
    return Letter(
        sequence=stored.seq or 0,
        put_aside_at=stored.time or datetime.now(UTC),
        stream=stream,
        stream_sequence=_number(headers.get(SEQUENCE)),
        subject=subject,
        reason=headers.get(REASON, ""),
        size_bytes=size,
        kept_bytes=len(data),
        obstacle=_obstacle(stream, subject, cut=size > len(data)),
    )


def _obstacle(stream: str, subject: str | None, *, cut: bool) -> str | None:
    """Return why a letter cannot be published again, or None.

    Only a recorder, or a person with all rights, puts letters here that come from RESULTS. Those of TICKS come from runners,
    and their headers may name any subject: published from here, they would reach where their runner may not publish.
    """
    if stream == subjects.TICKS:
        return "a tick is over with its instant, and the stream takes none twice: measure now (refresher run-now), and drop it"
    if stream != subjects.RESULTS:
        return "what the server itself says is not for others to say: drop it"
    if subject is None or not subjects.is_result(subject):
        return "its headers name no subject of results: drop it"
    if cut:
        return "it was too large to be kept whole: drop it"
    return None


def _readable(data: bytes, *, cut: bool) -> tuple[str, str]:
    try:
        # a character that was cut in two at the end is left out
        return "text", codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return "base64", base64.b64encode(data).decode()


def _text(value: object) -> str:
    return str(value)[:1_000].encode(errors="replace").decode()


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= 15 else None
