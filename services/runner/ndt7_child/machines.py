"""Which machines to measure against: one's own, or those that M-Lab's locate service names."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from services.runner.confined import Failed
from services.runner.http_child.address import Place, find
from services.runner.http_child.backends import parsed, text
from services.runner.http_child.connection import Connection
from services.runner.http_child.exchange import Exchange, Request
from services.runner.http_child.order import Way
from services.runner.http_child.tasks import Loop, Steps
from services.runner.ndt7_child.told import failed_status

MACHINES = 4
LONGEST_LIST_BYTES = 2**20


@dataclass(frozen=True)
class Machine:
    """A machine, and its address for each direction."""

    name: str
    urls: dict[str, str]
    server: dict[str, Any] = field(default_factory=dict)
    """What the result says of it."""


def own(server: str) -> list[Machine]:
    """Return the machine of an address such as `wss://ndt.example:443`."""
    name = server.partition("://")[2]
    return [Machine(name, {way: f"{server}/ndt/v7/{way}" for way in ("download", "upload")}, {"id": name, "host": name})]


def located(loop: Loop, url: str, way: Way) -> list[Machine]:
    """Ask a locate service for machines, the nearest first, four at most.

    Raises: Failed.
    """
    told = parsed(loop.finish(_asked(find(loop, url, way), url)))
    results = told.get("results") if isinstance(told, dict) else None
    machines = [_machine(each) for each in results] if isinstance(results, list) else []
    if found := [machine for machine in machines if machine]:
        return found[:MACHINES]
    raise Failed("bad_answer", f"the locate service {url} names no machine")


def _asked(place: Place, url: str) -> Steps[bytes]:
    target = urlsplit(url)._replace(scheme="", netloc="", fragment="").geturl() or "/"
    request = Request("GET", target, place.host)
    connection = Connection(place.endpoint)
    try:
        yield from connection.open()
        exchange = Exchange(connection)
        yield from connection.send(request.head())
        answer = yield from exchange.head(request)
        if answer.status != 200:
            raise failed_status(answer.status, answer.headers.get("location"), f"the locate service {url}")
        return (yield from exchange.body(answer, request, LONGEST_LIST_BYTES))
    finally:
        connection.close()


def _machine(told: object) -> Machine | None:
    """Read one of the results; None when it is none."""
    if not isinstance(told, dict) or not (name := text(told.get("machine"))) or not isinstance(told.get("urls"), dict):
        return None
    urls = {}
    for way in ("download", "upload"):
        for scheme in ("ws", "wss"):  # the encrypted one, where there is one
            url = told["urls"].get(f"{scheme}:///ndt/v7/{way}")
            if isinstance(url, str) and url.startswith(f"{scheme}://"):
                urls[way] = url
    place = told.get("location")
    place = place if isinstance(place, dict) else {}
    server = {"id": name, "host": name, "name": text(place.get("city")), "country_code": text(place.get("country"))}
    return Machine(name, urls, server)
