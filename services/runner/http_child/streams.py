"""What the connections of a load do: download until they are stopped, upload until they are stopped."""

import os
import time
from dataclasses import dataclass

from services.runner.confined import Failed
from services.runner.http_child.connection import Connection, Endpoint
from services.runner.http_child.exchange import Answer, Exchange, Request
from services.runner.http_child.service import Service
from services.runner.http_child.tasks import READ, WRITE, Steps

PIECE_BYTES = 256 * 1024
BLOCK = memoryview(os.urandom(2 * PIECE_BYTES))
"""Random, so that nothing on the way compresses it."""
AT_ONCE_BYTES = 8 * PIECE_BYTES
"""Then other connections have their turn, and the clock is looked at, also where the far end takes all that it is sent."""
FIRST_UPLOAD_BYTES = 16 * 1024
LOOK_EVERY_S = 1.0
A_LONG_TIME_S = 600.0
"""For an answer that comes after all that buffers still hold."""
LEAST_BODY_BYTES = 2**20
"""A shorter answer to the request for data without end is no test's data, but a page."""


@dataclass
class Stream:
    """A connection that carries load."""

    connection: Connection
    steps: Steps[None]
    warm: bool = False
    """Whether the server has shown that it takes part."""


def download(endpoint: Endpoint, service: Service) -> Stream:
    """Return a stream that downloads until it is stopped."""
    connection = Connection(endpoint)
    stream = Stream(connection, _nothing())
    stream.steps = _download(stream, service)
    return stream


def upload(endpoint: Endpoint, service: Service) -> Stream:
    """Return a stream that uploads until it is stopped."""
    connection = Connection(endpoint)
    stream = Stream(connection, _nothing())
    stream.steps = _upload(stream, service)
    return stream


def _nothing() -> Steps[None]:
    yield from ()


def _download(stream: Stream, service: Service) -> Steps[None]:
    connection = stream.connection
    exchange = Exchange(connection)
    try:
        yield from connection.open()
        while True:
            answer = yield from exchange.ask(service.download)
            _must_be_data(answer, service.download)
            stream.warm = True
            before = connection.received_bytes
            yield from exchange.drain(answer, service.download)
            carried = len(answer.rest) + connection.received_bytes - before
            if carried < LEAST_BODY_BYTES:
                raise Failed("bad_answer", f"{service.download} answered with {carried} bytes instead of a test's data")
            if not answer.keeps_open:
                connection.reopen()
                yield from connection.open()
    finally:
        connection.close()


def _must_be_data(answer: Answer, request: Request) -> None:
    if (answer.length is not None and answer.length < LEAST_BODY_BYTES) or "text/html" in answer.headers.get("content-type", ""):
        content = answer.headers.get("content-type", "no stated type")[:60]
        length = "unknown length" if answer.length is None else f"{answer.length} bytes"
        raise Failed("bad_answer", f"{request} answered with a page ({content}, {length}) instead of a test's data")


def _upload(stream: Stream, service: Service) -> Steps[None]:
    connection = stream.connection
    exchange = Exchange(connection)
    size = FIRST_UPLOAD_BYTES
    try:
        yield from connection.open()
        while True:
            request = service.upload(size)
            yield from connection.send(request.head())
            early = yield from send_body(connection, size, request)
            if early:
                answer = yield from exchange.answer(request, early)
                raise Failed("bad_answer", f"{request} answered {answer.status} before it had read what it was sent")
            answer = yield from _receipt(exchange, request, stream)
            yield from exchange.body(answer, request)
            # a server that has taken one upload takes the next
            stream.warm, size = True, service.upload_bytes
            if not answer.keeps_open:
                connection.reopen()
                yield from connection.open()
    finally:
        connection.close()


def _receipt(exchange: Exchange, request: Request, stream: Stream) -> Steps[Answer]:
    try:
        return (yield from exchange.answer(request, patience_s=A_LONG_TIME_S if stream.warm else None))
    except Failed as failed:
        if failed.kind == "timeout" and not stream.warm:
            raise Failed("unconfirmed", f"{request} never confirmed an upload of {FIRST_UPLOAD_BYTES >> 10} kB: {failed}") from None
        raise


def send_body(connection: Connection, size: int, request: Request) -> Steps[bytes]:
    """Send so many bytes of noise; return what the server says before it has them all, nothing when it waits for the end.

    Raises: Failed.
    """
    left, at, at_once = size, 0, 0
    heard = memoryview(bytearray(4_096))
    while left:
        try:
            sent = connection.send_some(BLOCK[at : at + min(left, PIECE_BYTES)])
        except Failed:
            if (received := connection.receive_into(heard)) > 0:  # it answered, and hung up
                return bytes(heard[:received])
            raise
        left -= sent
        at = (at + sent) % PIECE_BYTES
        at_once += sent
        if sent and at_once < AT_ONCE_BYTES:
            continue
        at_once = 0
        # as long as it takes: buffers may be seconds deep, and whether the line moves at all is for the load to see
        yield from connection.wait(READ | WRITE, time.monotonic() + LOOK_EVERY_S)
        received = connection.receive_into(heard)
        if received > 0:
            return bytes(heard[:received])
        if received == 0:
            raise Failed("truncated", f"{request}: the connection was closed before the upload was over")
    return b""
