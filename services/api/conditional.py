"""Answers that need not be sent again: each carries a mark of what it says, and who shows the same mark is told that it still holds."""

from hashlib import sha256
from typing import Annotated, Any, NamedTuple

from fastapi import Header
from starlette.responses import Response

from services.api.problems import documented

IfNoneMatch = Annotated[
    str | None,
    Header(description="What is there already, as `ETag` gave it: 304 when it is still the same.", examples=['"5f1d3c0a9b7e4d26"']),
]


def documented_once(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the responses of such an operation for the OpenAPI document, beside these errors."""
    etag = {"ETag": {"description": "A mark of what the answer says, for `If-None-Match`.", "schema": {"type": "string"}}}
    return {200: {"headers": etag}, 304: {"description": "`If-None-Match` has it already.", "headers": etag}, **documented(*statuses)}


class Marked(NamedTuple):
    """JSON, and the mark of what it says."""

    body: bytes
    etag: str


def marked(body: bytes) -> Marked:
    """Return JSON with its mark.

    That is made from the answer itself, so nothing can be overlooked: not a late row, not one that was replaced or dropped.
    """
    return Marked(body, f'"{sha256(body).hexdigest()[:32]}"')


def answer_once(answer: Marked, if_none_match: str | None) -> Response:
    """Return JSON as a response, or 304 without it when the header names its mark (RFC 9110, 13.1.2: weakly compared)."""
    body, etag = answer
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}  # keep it, but ask each time
    marks = {mark.strip().removeprefix("W/") for mark in (if_none_match or "").split(",")}
    if marks & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
