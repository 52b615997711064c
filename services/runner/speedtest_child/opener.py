"""The way of the library's requests: made as it would make them, and kept account of.

The library counts bytes, whatever they are, and looks at nothing else.
"""

import re
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

from services.runner.speedtest_child.audit import Audit, Problem, Transfer, answered, page, unanswered
from services.runner.speedtest_child.document import Document, Unusable

IMAGE_BYTES = {
    350: 245_388,
    500: 505_544,
    750: 1_118_012,
    1000: 1_986_284,
    1500: 4_468_241,
    2000: 7_907_740,
    2500: 12_407_926,
    3000: 17_816_816,
    3500: 24_262_167,
    4000: 31_625_365,
}
"""How long random{N}x{N}.jpg is on every server."""
MARKS = {"speedtest-config": b"<client", "speedtest-servers": b"<server"}
"""What every configuration and every list contains."""
IMAGE = re.compile(r"/random(\d+)x\d+\.jpg")


class Opener:
    """Stands before the opener that the library built for itself: makes the same requests, and keeps account of them.

    What the library could not catch is turned into an URLError, which it can.
    """

    def __init__(self, opener: Any, audit: Audit, timeout_s: float) -> None:
        self._opener = opener
        self._audit = audit
        self._timeout_s = timeout_s

    def open(self, request: Any) -> "Document | Image | Receipt":
        """Make a request as urllib's openers do.

        Raises: URLError (of which HTTPError is one) when there is no answer that can be used.
        """
        url = request.full_url
        if request.data is not None:
            return self._upload(request)
        if image := IMAGE.search(url):
            transfer = self._audit.added(url, IMAGE_BYTES.get(int(image[1]), 0))
            response = self._exchange(request, transfer)
            self._must_stay(response, transfer)
            return Image(response, transfer, self._audit, self._timeout_s)
        return self._document(request, self._audit.added(url))

    def _document(self, request: Any, transfer: Transfer) -> Document:
        response = self._exchange(request, transfer)
        try:
            document = Document(response, self._timeout_s)
            transfer.problem = _not_ours(document, transfer)
        except Unusable as unusable:
            transfer.problem = Problem(unusable.kind, str(unusable))
        except (OSError, HTTPException) as error:
            transfer.problem = unanswered(error, self._timeout_s)
        if transfer.problem:
            raise URLError(transfer.problem.text)
        return document

    def _upload(self, request: Any) -> "Receipt":
        transfer = self._audit.added(request.full_url, len(request.data))
        read = request.data.read

        def counted(size: int = 10_240) -> bytes:
            chunk: bytes = read(size)
            transfer.carried_bytes += len(chunk)
            return chunk

        request.data.read = counted
        response = self._exchange(request, transfer)
        self._must_stay(response, transfer)
        return Receipt(response, transfer, self._audit, self._timeout_s)

    def _exchange(self, request: Any, transfer: Transfer) -> Any:
        try:
            response = self._opener.open(request)
        except HTTPError as error:
            error.close()
            moved = error.url if error.url != request.full_url else error.headers.get("Location")
            transfer.problem = answered(error.code, moved)
            raise
        except (OSError, HTTPException) as error:
            transfer.problem = unanswered(error, self._timeout_s)
            raise URLError(transfer.problem.text) from error
        if response is None:  # urllib's way to say that it knows no such scheme
            transfer.problem = Problem("bad_answer", f"{request.full_url[:200]} is no http or https address")
            raise URLError(transfer.problem.text)
        if response.geturl() != request.full_url:
            transfer.redirected_to = response.geturl()
        return response

    @staticmethod
    def _must_stay(response: Any, transfer: Transfer) -> None:
        """Refuse to measure where a redirect leads: it is not the server that was chosen."""
        if transfer.redirected_to:
            response.close()
            transfer.problem = Problem("redirected", f"redirected to {page(transfer.redirected_to)}")
            raise URLError(transfer.problem.text)


def _not_ours(document: Document, transfer: Transfer) -> Problem | None:
    """Return the problem of an answer that is not from speedtest.net, such as the page of a network that wants a login first."""
    if document.code != 200:
        return answered(document.code)
    mark = next((mark for part, mark in MARKS.items() if part in transfer.url), b"")
    if mark in document.body:
        return None
    beginning = f"beginning with {document.body[:60].decode(errors='replace')!r}"
    if transfer.redirected_to:
        return Problem("redirected", f"another page came, by a redirect to {page(transfer.redirected_to)}, {beginning}")
    return Problem("bad_answer", f"another page came in its place, {beginning}")


class Image:
    """The body of a download: counted, and at its end compared with what it should have been."""

    def __init__(self, response: Any, transfer: Transfer, audit: Audit, timeout_s: float) -> None:
        self._response = response
        self._transfer = transfer
        self._audit = audit
        self._timeout_s = timeout_s
        self.close = response.close

    def read(self, size: int) -> bytes:
        """Read at most so many bytes.

        Raises: URLError when the connection breaks.
        """
        transfer = self._transfer
        try:
            chunk: bytes = self._response.read(size)
        except (OSError, HTTPException) as error:
            transfer.problem = unanswered(error, self._timeout_s)
            raise URLError(transfer.problem.text) from error
        transfer.carried_bytes += len(chunk)
        if not chunk:
            self._audit.complete(transfer)
            transfer.problem = self._shortfall()
        return chunk

    def _shortfall(self) -> Problem | None:
        carried, headers = self._transfer.carried_bytes, self._response.headers
        declared = headers.get("Content-Length", "")
        if declared.isascii() and declared.isdecimal() and carried < int(declared):
            return Problem("truncated", "the connection was closed before the whole body had come")
        if carried < 0.9 * self._transfer.expected_bytes:
            content = headers.get("Content-Type", "of no stated type")
            return Problem("bad_answer", f"another page ({content[:60]}) came instead of the test's image")
        return None


class Receipt:
    """The reply to an upload; `size=N` is the server's word that the bytes have arrived."""

    def __init__(self, response: Any, transfer: Transfer, audit: Audit, timeout_s: float) -> None:
        self._response = response
        self._transfer = transfer
        self._audit = audit
        self._timeout_s = timeout_s
        self.close = response.close

    def read(self, size: int) -> bytes:
        """Read at most so many bytes of the reply.

        Raises: URLError when the connection breaks.
        """
        try:
            reply: bytes = self._response.read(size)
        except (OSError, HTTPException) as error:
            self._transfer.problem = unanswered(error, self._timeout_s)
            raise URLError(self._transfer.problem.text) from error
        if re.match(rb"size=[1-9]", reply):
            self._audit.complete(self._transfer)
        else:
            self._transfer.problem = Problem("bad_answer", f"the reply begins with {reply!r} instead of size=")
        return reply
