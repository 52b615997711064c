"""A request, read from what h11 has parsed."""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import h11

MOST_PARAMETERS = 32


@dataclass(frozen=True)
class Asked:
    """What a client asks for; header names are in small letters."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: int | None
    """How many bytes follow; None when they come in chunks and nobody has said how many."""
    keep_alive: bool
    head_bytes: int


def read(request: h11.Request) -> Asked:
    """Return the request; h11 has seen to its syntax and to its one Content-Length.

    Raises: ValueError when the target is no path with a query.
    """
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    target = urlsplit(request.target.decode("latin-1"))
    return Asked(
        method=request.method.decode("latin-1"),
        path=target.path,
        query=dict(parse_qsl(target.query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)),
        headers=headers,
        body=None if "transfer-encoding" in headers else int(headers.get("content-length", 0)),
        keep_alive=request.http_version == b"1.1" and "close" not in headers.get("connection", "").lower(),
        head_bytes=len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers),
    )
