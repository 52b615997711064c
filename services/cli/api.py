"""The HTTP API as the commands see it: JSON in and out, server-sent events, and every trouble as one sentence."""

import json
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from services.cli import target
from shared.errors import ConfigurationError, RefresherError, Unavailable

if TYPE_CHECKING:
    import httpx

SILENCE_S = 45.0
"""The API writes to a stream every 15 s at the least: after three times that it is gone."""


class Problem(RefresherError):
    """The API refused: its detail, and each field with the reason on a line of its own (RFC 9457)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Event:
    """One server-sent event; a keep-alive has the kind `""`."""

    kind: str
    data: Any = None


class Api:
    """A connection to the API; every method raises Unavailable when it does not answer and Problem when it refuses."""

    def __init__(self, url: str) -> None:
        import httpx

        self.url = url
        try:
            self._client = httpx.Client(**way_to(url))
        except ValueError as error:
            raise self._no_url(error) from None

    def get(self, path: str, **parameters: object) -> Any:
        """Read."""
        return self._call("GET", path, parameters)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Create or act."""
        return self._call("POST", path, {}, body)

    def delete(self, path: str) -> None:
        """Remove."""
        self._call("DELETE", path, {})

    @contextmanager
    def export(self, **parameters: object) -> "Iterator[Iterator[bytes]]":
        """Open an export and give its bytes as they come."""
        with self._stream("GET", "/results/export", parameters) as response:
            yield response.iter_bytes()

    @contextmanager
    def events(self, method: str, path: str, body: Mapping[str, Any] | None = None, **parameters: object) -> Iterator[Iterator[Event]]:
        """Open a stream of events and give them as they come; the end of the stream ends them."""
        with self._stream(method, path, parameters, body) as response:
            yield parse(response.iter_lines())

    def _call(self, method: str, path: str, parameters: Mapping[str, object], body: Mapping[str, Any] | None = None) -> Any:
        with self._stream(method, path, parameters, body) as response:
            text = response.read()
        return self._json(text) if text else None

    @contextmanager
    def _stream(
        self, method: str, path: str, parameters: Mapping[str, object], body: Mapping[str, Any] | None = None
    ) -> "Iterator[httpx.Response]":
        import httpx

        given = {name: str(value) for name, value in parameters.items() if value is not None}
        timeout = httpx.Timeout(30, connect=5, read=SILENCE_S)
        # sent with every POST, body or not: the API refuses those that a form on some web page could send
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        address = f"{self.url}/api/v1{path}"
        try:
            with self._client.stream(method, address, params=given, json=body, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    raise self._problem(response.status_code, response.read())
                yield response
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._no_url(error) from None
        except httpx.ConnectError as error:
            raise Unavailable(
                f"the API at {self.url} does not answer ({error}): start the system with `refresher up`, "
                "or set REFRESHER_API_URL to where it runs."
            ) from None
        except httpx.HTTPError as error:
            raise Unavailable(f"the API at {self.url} broke off: {str(error) or type(error).__name__}.") from None

    def _no_url(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(f"REFRESHER_API_URL is no http or https URL: {self.url!r} ({error}).")

    def _problem(self, status: int, text: bytes) -> Problem:
        document = self._json(text)
        if not isinstance(document, dict) or "detail" not in document:
            raise self._stranger()
        detail = str(document["detail"])
        reasons = [f"{each.get('field')}: {each.get('reason')}" for each in document.get("errors") or []]
        return Problem(status, "\n".join([detail, *(reason for reason in reasons if reason not in detail)]))

    def _json(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise self._stranger() from None

    def _stranger(self) -> Unavailable:
        return Unavailable(f"what answers at {self.url} is not Refresher's API: check REFRESHER_API_URL.")


def connect() -> Api:
    """Return the API of the system that the commands talk to."""
    return Api(target.api_url())


def way_to(url: str) -> dict[str, Any]:
    """Return the options of a client for a URL: to this machine no proxy of the environment is in between.

    Plain HTTP to it needs no certificates, which take 30 ms to read.
    """
    parts = urlsplit(url)
    if parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        return {}
    nobody = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)} if parts.scheme == "http" else {}
    return {"trust_env": False, **nobody}


def path(*parts: str) -> str:
    """Return a path whose parts may hold anything."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def pages(api: Api, limit: int, parameters: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """Yield at most `limit` results, newest first."""
    cursor = None
    while limit > 0:
        page = api.get("/results", **parameters, limit=min(limit, 1_000), cursor=cursor)
        yield from page["items"]
        limit -= len(page["items"])
        cursor = page["next"]
        if cursor is None:
            return


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the server-sent events in lines of text (WHATWG HTML, section 9.2); a comment is a keep-alive."""
    kind, data = "message", list[str]()
    for line in lines:
        if line.startswith(":"):
            yield Event("")
        elif line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                kind = value
            elif field == "data":
                data.append(value)
        else:
            if data:
                yield Event(kind, json.loads("\n".join(data)))
            kind, data = "message", []
