"""What each path answers. The transfers themselves are the connection's work."""

import hmac
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from services.testserver import garbage
from services.testserver.addresses import kind
from services.testserver.metrics import Metrics
from services.testserver.request import Asked
from services.testserver.tokens import DATAGRAMS, SECONDS, Tokens
from services.testserver.transfers import Direction

Headers = tuple[tuple[str, str], ...]

METHODS: dict[str, tuple[str, ...]] = {"empty": ("GET", "HEAD", "POST", "OPTIONS")}
OTHERWISE = ("GET", "HEAD", "OPTIONS")
OPEN = {"health/live", "health/ready"}
"""What a supervisor asks, without a token."""
METRICS_FOR_S = 0.1
"""Writing the metrics takes more than anything else here: who asks without end must not get all of the CPU."""
# a proxy may neither keep what it passes on nor press it together
FRESH: Headers = (("Cache-Control", "no-store, no-cache, must-revalidate, no-transform"), ("Pragma", "no-cache"))
CORS: Headers = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "GET, POST"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Encoding, Content-Type"),
)
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


@dataclass(frozen=True)
class Answer:
    """Its `transfer` says what goes with it: `length` bytes of garbage down, or what the client sends up."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    transfer: Direction | None = None
    length: int = 0
    refused: str = ""
    """The reason, where this is a refusal."""


def refusal(status: int, reason: str, sentence: str, headers: Headers = ()) -> Answer:
    """Return the answer to a request that is refused: a line of text says why."""
    return Answer(status, (*headers, *FRESH, ("Content-Type", "text/plain; charset=utf-8")), f"{sentence}\n".encode(), refused=reason)


class Answers:
    """The paths of one server."""

    def __init__(self, *, metrics: Metrics, tokens: Tokens, token: str | None, scheme: str, udp_port: int | None) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._token = token
        self._scheme = scheme
        self._udp_port = udp_port
        self._metrics_text, self._metrics_until = b"", 0.0
        self._routes: dict[str, Callable[[Asked, str], Answer]] = {
            "garbage": self._garbage,
            "empty": self._empty,
            "getIP": self._address,
            ".well-known/librespeed": self._servers,
            ".well-known/refresher": self._about,
            "health/live": self._health,
            "health/ready": self._health,
            "metrics": self._prometheus,
        }

    def to(self, asked: Asked, client: str) -> Answer:
        """Return the answer to a request from an address."""
        route = asked.path.removeprefix("/").removeprefix("backend/").removesuffix(".php")
        if route not in self._routes:
            return refusal(404, "not_found", "There is no such path here; docs/testserver.md names those that there are.")
        allowed = METHODS.get(route, OTHERWISE)
        cross_origin = CORS if "cors" in asked.query else ()
        if asked.method not in allowed:
            return refusal(405, "method", f"This path takes {', '.join(allowed)}.", (("Allow", ", ".join(allowed)),))
        if asked.method == "OPTIONS":
            return Answer(204, (("Allow", ", ".join(allowed)), *cross_origin))
        if route not in OPEN and not self._may(asked):
            told = "This server wants its token: as the header Authorization: Bearer TOKEN, or as ?token=TOKEN."
            return refusal(401, "token", told, (("WWW-Authenticate", "Bearer"), *cross_origin))
        answer = self._routes[route](asked, client)
        return Answer(answer.status, (*answer.headers, *FRESH, *cross_origin), answer.body, answer.transfer, answer.length)

    def _may(self, asked: Asked) -> bool:
        if self._token is None:
            return True
        scheme, _, shown = asked.headers.get("authorization", "").partition(" ")
        given = shown.strip() if scheme.lower() == "bearer" else asked.query.get("token", "")
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _garbage(self, asked: Asked, _: str) -> Answer:
        headers = (("Content-Type", "application/octet-stream"), ("Content-Disposition", "attachment; filename=random.dat"))
        return Answer(200, headers, transfer="download", length=garbage.length(asked.query.get("ckSize")))

    def _empty(self, asked: Asked, _: str) -> Answer:
        return Answer(200, transfer="upload" if asked.method == "POST" else None)

    def _address(self, _: Asked, client: str) -> Answer:
        told = kind(client)
        return _json({"processedString": f"{client} - {told}" if told else client, "rawIspInfo": ""})

    def _servers(self, asked: Asked, _: str) -> Answer:
        """Return the server list of LibreSpeed's clients, with this server alone, under the name by which it was asked."""
        host = asked.headers.get("host", "")
        if not _HOST.fullmatch(host):
            return refusal(400, "malformed", "The header Host names no host.")
        token = f"?{urlencode({'token': asked.query['token']})}" if "token" in asked.query else ""
        paths = {"dlURL": "garbage", "ulURL": "empty", "pingURL": "empty", "getIpURL": "getIP"}
        return _json(
            [
                {
                    "id": 1,
                    "name": "refresher testserver",
                    "server": f"{self._scheme}://{host}/{token}",
                    **paths,
                    "sponsorName": "",
                    "sponsorURL": "",
                }
            ]
        )

    def _about(self, _: Asked, client: str) -> Answer:
        about: dict[str, Any] = {"name": "refresher testserver", "version": self._metrics.version}
        if self._udp_port is not None and (token := self._tokens.issue(client, time.monotonic())):
            about["udp"] = {"port": self._udp_port, "token": token.hex(), "seconds": SECONDS, "datagrams": DATAGRAMS}
        return _json(about)

    def _health(self, _: Asked, __: str) -> Answer:
        return _json({"status": "up", "service": "testserver", "version": self._metrics.version})

    def _prometheus(self, _: Asked, __: str) -> Answer:
        if time.monotonic() > self._metrics_until:
            self._metrics_until = time.monotonic() + METRICS_FOR_S
            self._metrics_text = generate_latest(self._metrics.registry)
        return Answer(200, (("Content-Type", CONTENT_TYPE_LATEST),), self._metrics_text)


def _json(value: Any) -> Answer:
    return Answer(200, (("Content-Type", "application/json; charset=utf-8"),), json.dumps(value).encode())
