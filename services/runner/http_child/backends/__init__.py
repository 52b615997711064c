"""The adapters: each makes a `Service` of a server that speaks its protocol, in one file of this folder."""

import json
from typing import Any

from services.runner.confined import Failed
from services.runner.http_child.address import Place
from services.runner.http_child.connection import Connection
from services.runner.http_child.exchange import Exchange, Request, check
from services.runner.http_child.tasks import Steps

LONGEST_TEXT = 1_000


def fetch(place: Place, request: Request) -> Steps[bytes]:
    """Return a short document.

    Raises: Failed.
    """
    connection = Connection(place.endpoint)
    try:
        yield from connection.open()
        exchange = Exchange(connection)
        answer = yield from exchange.ask(request)
        return (yield from exchange.body(answer, request, 2**20))
    finally:
        connection.close()


def status(place: Place, request: Request) -> Steps[tuple[int, bytes]]:
    """Return the status that a request meets with, and its body when that is 200."""
    connection = Connection(place.endpoint)
    try:
        yield from connection.open()
        exchange = Exchange(connection)
        yield from connection.send(request.head())
        answer = yield from exchange.head(request)
        if answer.status in {401, 403, 429}:
            check(answer, request)
        if answer.status != 200:
            return answer.status, b""
        return 200, (yield from exchange.body(answer, request, 2**20))
    finally:
        connection.close()


def parsed(body: bytes) -> Any:
    """Return what JSON says, None when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def text(value: object) -> str | None:
    """Return a server's word as text of bounded length, None when it says nothing."""
    told = str(value).replace("\x00", "").strip()[:LONGEST_TEXT] if value is not None else ""
    return told.encode("utf-8", "replace").decode() or None


__all__ = ["Failed", "fetch", "parsed", "status", "text"]
