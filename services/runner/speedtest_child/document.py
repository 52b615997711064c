"""The configuration and the list of servers: read whole, within limits that the library does not have."""

import gzip
import time
import zlib
from io import BytesIO
from typing import Any

MAX_BYTES = 8 * 2**20
"""The list of all servers in the world is about 2 MB."""


class Unusable(Exception):
    """The body cannot be used; `kind` as in ProbeError."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Document:
    """A body that is already here, in the form of the response that the library expects."""

    def __init__(self, response: Any, timeout_s: float) -> None:
        """Read the whole body of a response and decompress it.

        Raises: Unusable when it is too long, too slow, cut short or not what it says; OSError and HTTPException as the response does.
        """
        with response:
            body = _whole(response, timeout_s)
            if response.headers.get("Content-Encoding", "").strip().lower() == "gzip":
                body = _decompressed(body)
        self.code: int = response.status
        self.body = body
        self._url = response.geturl()
        self.read = BytesIO(body).read

    def geturl(self) -> str:
        """Return where it came from in the end."""
        return str(self._url)

    def getheader(self, _: str) -> None:
        """Return no header at all: there is no encoding left for the library to undo."""

    def close(self) -> None:
        """Do nothing, as often as the library likes."""


def _whole(response: Any, timeout_s: float) -> bytes:
    end = time.monotonic() + timeout_s
    body = bytearray()
    while chunk := response.read1(65_536):
        body += chunk
        if len(body) > MAX_BYTES:
            raise Unusable("bad_answer", f"the body is longer than {MAX_BYTES >> 20} MB")
        if time.monotonic() > end:
            raise Unusable("timeout", f"the body was not complete after {timeout_s:g} s")
    if response.length:
        raise Unusable("truncated", f"the body ended {response.length} bytes early")
    return bytes(body)


def _decompressed(body: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=BytesIO(body)) as file:
            plain = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Unusable("bad_answer", f"the body says that it is gzip but is not ({error})") from None
    if len(plain) > MAX_BYTES:
        raise Unusable("bad_answer", f"the body unpacks to more than {MAX_BYTES >> 20} MB")
    return plain
