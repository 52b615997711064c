"""The live feed: ticks, progress and results as they pass."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from services.api.feed import Feed
from services.api.parameters import Query
from services.api.parts import TheFeed
from services.api.problems import documented
from services.api.streaming import EVENT_SCHEMA, EVENTS, KEEP_ALIVE, KEEP_ALIVE_S, sent, streamed
from shared.events import Name

router = APIRouter(prefix="/api/v1", tags=["live"])

_EXAMPLE = {"event": "tick", "data": '{"run_id":"0b6ef0d4-4e5a-5e0e-8a7a-0f6b8a3c1d52","site":"home","schedule":"hourly",…}'}


class EventsQuery(Query):
    """Which events are wanted."""

    site: Annotated[Name | None, Field(description="Only events of this site.", examples=["home"])] = None


@router.get(
    "/events",
    summary="Follow events",
    operation_id="follow_events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Events until either side ends it.", "content": {EVENTS: {"schema": EVENT_SCHEMA, "example": _EXAMPLE}}},
        **documented(422, 503),
    },
)
async def events(wanted: Annotated[EventsQuery, InQuery()], feed: TheFeed) -> Response:
    """Follow ticks, progress and results as they pass, as server-sent events (`tick`, `progress`, `result`).

    Nothing is repeated: what passed before, or while the line was cut, is in the results. A client that reads too
    slowly gets `lagged` with the number of events it missed. A comment every 15 s shows that the line is alive.
    """
    return await streamed(_events(feed, wanted.site), EVENTS)


async def _events(feed: Feed, site: str | None) -> AsyncGenerator[bytes, None]:
    with feed.listening(site=site) as listener:
        yield b": listening\n\n"
        while (taken := await listener.take(KEEP_ALIVE_S)) is not None:
            dropped, happened = taken
            if dropped:
                yield sent("lagged", b'{"dropped":%d}' % dropped)
            for event in happened:
                yield sent(event.kind, event.data)
            if not happened:
                yield KEEP_ALIVE
