"""Dead letters: what could not be used. The recorder keeps them; the API only asks it."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi import Query as InQuery
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.api.bus import Bus
from services.api.parameters import Query
from services.api.parts import TheBus
from services.api.problems import ProblemError, documented
from shared import letters, subjects
from shared.errors import Unavailable

router = APIRouter(prefix="/api/v1/dead", tags=["dead letters"])

_EXAMPLE: dict[str, Any] = {
    "sequence": 17,
    "put_aside_at": "2026-10-03T07:24:33.407000Z",
    "stream": "RESULTS",
    "stream_sequence": 4711,
    "subject": "refresher.result.home.hourly",
    "reason": "not a result: value: Invalid JSON: expected value at line 1 column 1",
    "size_bytes": 5,
    "kept_bytes": 5,
    "obstacle": None,
}


class LetterView(letters.Letter):
    """A message that could not be used."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})


class FullLetterView(letters.FullLetter):
    """A message that could not be used, and what is in it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_EXAMPLE, "encoding": "text", "content": "hello", "is_whole": True}]})


class LetterPageView(letters.LetterPage):
    """Dead letters, the oldest first, and where the next page begins."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_EXAMPLE], "next": None, "total": 1}]})


class DeadQuery(Query):
    """Which letters are wanted."""

    after: Annotated[int, Field(ge=0, lt=2**53, description="`next` of the page before; 0 begins with the oldest.")] = 0
    limit: Annotated[int, Field(ge=1, le=letters.LONGEST_PAGE, description="At most so many letters.")] = letters.LONGEST_PAGE


Which = Annotated[letters.Sequence, Path(description="The number of the letter.", examples=[17])]


@router.get(
    "", summary="List dead letters", operation_id="list_dead_letters", response_model=LetterPageView, responses=documented(422, 503)
)
async def listed(wanted: Annotated[DeadQuery, InQuery()], bus: TheBus) -> Response:
    """List the messages that could not be used, the oldest first, each with its reason. They are kept for 30 days.

    Most are results that a recorder could not read: after an upgrade of the recorder they may be published again.
    """
    return _json(await _ask(bus, subjects.LIST_DEAD, letters.Page(after=wanted.after, limit=wanted.limit)))


@router.get(
    "/{sequence}",
    summary="Get a dead letter",
    operation_id="get_dead_letter",
    response_model=FullLetterView,
    responses=documented(404, 422, 503),
)
async def one(sequence: Which, bus: TheBus) -> Response:
    """Get a message that could not be used, with the first 64 KiB of its content: text, or base64 when it is no UTF-8."""
    return _json(await _ask(bus, subjects.GET_DEAD, letters.Which(sequence=sequence)))


@router.post(
    "/{sequence}/redrive",
    summary="Publish a dead letter again",
    operation_id="redrive_dead_letter",
    response_model=LetterView,
    responses=documented(404, 409, 413, 415, 422, 503),
)
async def redrive(sequence: Which, bus: TheBus) -> Response:
    """Publish a result that could not be used again, and remove it from the dead letters.

    Repeating it does no harm: a run is recorded once. What the recorder refuses anew is put aside anew, under a new number.
    409 when it cannot be published again; `obstacle` of the letter says why.
    """
    return _json(await _ask(bus, subjects.REDRIVE_DEAD, letters.Which(sequence=sequence)))


@router.delete(
    "/{sequence}",
    summary="Drop a dead letter",
    operation_id="drop_dead_letter",
    status_code=204,
    responses=documented(404, 413, 422, 503),
)
async def drop(sequence: Which, bus: TheBus) -> None:
    """Remove a message that could not be used, for good."""
    await _ask(bus, subjects.DROP_DEAD, letters.Which(sequence=sequence))


async def _ask(bus: Bus, subject: str, question: BaseModel) -> bytes:
    answer = await bus.ask(subject, question.model_dump_json().encode(), "recorder")
    headers = answer.headers or {}
    code, reason = headers.get(ERROR_CODE_HEADER), headers.get(ERROR_HEADER, "")
    if code in {"404", "409"}:
        raise ProblemError(int(code), reason)
    if code:
        raise Unavailable(f"The recorder cannot do it now: {reason}")
    return answer.data


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
