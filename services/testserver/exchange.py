"""One request and its answer, as h11 parses and writes them."""

from email.utils import formatdate
from http import HTTPStatus
from typing import Literal

import h11

from services.testserver.answers import Answer
from services.testserver.request import Asked, read


class Exchange:
    """A request as it comes in, and the head of its answer. Bodies of known length pass by it; those in chunks go through it."""

    def __init__(self, head_bytes: int, received: bytes = b"") -> None:
        """Begin with what has been received beyond the request before."""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=head_bytes)
        self.begun = False
        """Whether anything of the request has come."""
        self.asked: Asked | None = None
        if received:
            self.receive(received)

    def receive(self, data: bytes) -> None:
        """Take what has come in."""
        self.begun = True
        self._http.receive_data(data)

    def event(self) -> Asked | int | Literal["end"] | None:
        """Return the request, then how many bytes of its body a chunk brought; `end` at its end, None when more must come first.

        Raises: h11.RemoteProtocolError, ValueError when it is no request that can be read.
        """
        event = self._http.next_event()
        if isinstance(event, h11.Request):
            self.asked = read(event)
            return self.asked
        if isinstance(event, h11.Data):
            return len(event.data)
        return "end" if isinstance(event, h11.EndOfMessage) else None

    @property
    def beyond(self) -> bytes:
        """What has been received and belongs to a body of known length, or to the next request."""
        return self._http.trailing_data[0]

    def go_on(self) -> bytes:
        """Return what a client wants to read before it sends the body; nothing where it does not wait."""
        if not self._http.they_are_waiting_for_100_continue or self.beyond:
            return b""
        return self._http.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b""

    def head(self, answer: Answer, *, close: bool) -> bytes:
        """Return the head of the answer."""
        headers = [("Date", formatdate(usegmt=True)), *answer.headers]
        if answer.status != HTTPStatus.NO_CONTENT:
            headers.append(("Content-Length", str(answer.length or len(answer.body))))
        if close:
            headers.append(("Connection", "close"))
        reason = HTTPStatus(answer.status).phrase
        return self._http.send(h11.Response(status_code=answer.status, headers=headers, reason=reason)) or b""
