"""Answers that come piece by piece."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

from starlette.responses import StreamingResponse

EVENTS = "text/event-stream"
KEEP_ALIVE_S = 15.0
EVENT_SCHEMA = {
    "type": "object",
    "description": "Each event; comments keep the line alive.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
}
KEEP_ALIVE = b": keep-alive\n\n"


async def streamed(
    pieces: AsyncGenerator[bytes, None], media_type: str, headers: Mapping[str, str] | None = None, status: int = 200
) -> StreamingResponse:
    """Return a response of pieces. The first is made here, so that an error is a problem document and not half an answer."""
    first = await anext(pieces, b"")

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    # proxies hold back what they think is a file
    return StreamingResponse(body(), status, {"X-Accel-Buffering": "no", **(headers or {})}, media_type)


def sent(kind: str, data: bytes) -> bytes:
    """Return a server-sent event; `data` is JSON on one line."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
