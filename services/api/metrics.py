"""What Prometheus reads: the requests, the live clients, and the last values from the database."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, TypeVar

import asyncpg
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api import store
from services.api.bus import Bus
from services.api.database import Database
from services.api.feed import Feed
from services.api.newest import NewestRuns, Place
from services.api.overdue import RUNS, awaited_since
from services.api.problems import documented
from shared.errors import Unavailable
from shared.events import ANY
from shared.service import Service

T = TypeVar("T")

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_PATIENCE_S = 3.0


class Measured:
    """Counts requests by the template of their route, and measures how long their answer took to begin."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, feed: Feed) -> None:
        self._app = app
        self._requests = Counter(
            "refresher_api_requests", "Requests by route, method and class of status.", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "refresher_api_request_seconds",
            "How long it took until the answer began.",
            ["route", "method"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        clients = Gauge("refresher_api_live_clients", "Clients that follow events now.", registry=registry)
        clients.set_function(lambda: len(feed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                # the template, and one word for all unknown paths: what people type must not become labels
                route = getattr(scope.get("route"), "path", "unknown")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._requests.labels(route, method, f"{message['status'] // 100}xx").inc()
                self._seconds.labels(route, method).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_measured)


class LastValues(Collector):
    """The newest results of each site, line and engine, read at every scrape. A value is absent after a failure, never 0 or -1."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database, self._bus = database, bus
        self._newest = NewestRuns()
        self._runs: Mapping[Place, Sequence[asyncpg.Record]] = {}
        self._awaited_since: dict[Place, datetime] = {}

    async def refresh(self) -> None:
        """Read them anew; while Postgres or NATS is away there are none of it, and the scrape goes on."""
        runs, stored = await asyncio.gather(
            _or_none(self._newest.read(self._database)),
            _or_none(store.everything(self._bus)),
        )
        schedules = [each.schedule for each in stored or () if each.schedule]
        # without Postgres nobody can say that a result is missing
        awaited = {} if runs is None else await asyncio.to_thread(awaited_since, schedules, datetime.now(UTC))
        self._runs, self._awaited_since = runs or {}, awaited

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, under the names that speed test dashboards use."""
        for name, help_text, column, factor in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=_LABELS)
            for place, runs in self._runs.items():
                value = _value(runs, column)
                if value is not None:
                    gauge.add_metric(_labels(place), value * factor)
            yield gauge
        age = GaugeMetricFamily("refresher_result_age_seconds", "Time since the newest run that succeeded or failed ended.", labels=_LABELS)
        for place, seconds in self._ages_s().items():
            age.add_metric(_labels(place), seconds)
        yield age
        limit = GaugeMetricFamily(
            "refresher_result_age_limit_seconds",
            f"An older newest result means that the last {RUNS} due runs left none.",
            labels=_LABELS,
        )
        for place, since in self._awaited_since.items():
            limit.add_metric(_labels(place), (datetime.now(UTC) - since).total_seconds())
        yield limit

    def _ages_s(self) -> dict[Place, float]:
        """Return how old the newest results are, by the clock of the database; what any line may measure is as old as that of all lines."""
        read_at = max((runs[0]["read_at"] for runs in self._runs.values()), default=None)
        ages = {place: (read_at - runs[0]["finished_at"]).total_seconds() for place, runs in self._runs.items() if read_at}
        for site, line, engine in self._awaited_since:
            if line == ANY and (of_all := [age for place, age in ages.items() if place[0] == site and place[2] == engine]):
                ages[site, line, engine] = min(of_all)
        return ages


_LABELS = ("site", "engine", "line")


def _labels(place: Place) -> tuple[str, ...]:
    """Return the values of the labels; the line without a name has no label."""
    site, line, engine = place
    return (site, engine) if line is None else (site, engine, line)


async def _or_none(read: Coroutine[Any, Any, T]) -> T | None:
    """Return what is read, or None when it is away or takes too long for a scrape."""
    try:
        return await asyncio.wait_for(read, _PATIENCE_S)
    except (Unavailable, TimeoutError):
        return None


_GAUGES = (
    ("speedtest_up", "Whether the newest run that succeeded or failed succeeded.", "up", 1),
    ("speedtest_download_bits_per_second", "Download rate of the newest run.", "download_bps", 1),
    ("speedtest_upload_bits_per_second", "Upload rate of the newest run.", "upload_bps", 1),
    ("speedtest_ping_latency_milliseconds", "Idle round-trip time of the newest run.", "latency_s", 1_000),
    ("speedtest_jitter_latency_milliseconds", "Jitter of the newest run.", "jitter_s", 1_000),
    ("refresher_download_latency_seconds", "Round-trip time while the newest run's download filled the line.", "download_latency_s", 1),
    ("refresher_upload_latency_seconds", "Round-trip time while the newest run's upload filled the line.", "upload_latency_s", 1),
    ("refresher_idle_latency_seconds", "Idle round-trip time of the newest run.", "latency_s", 1),
    ("refresher_responsiveness_rpm", "Round trips per minute under load of the newest run.", "responsiveness_rpm", 1),
    ("speedtest_server_id", "The server of the newest run, where its id is a number.", "server_id", 1),
    ("refresher_failed_runs_in_a_row", "Failed runs since the last success, among the newest ten.", "failed_in_a_row", 1),
    ("refresher_download_best_of_3_bits_per_second", "Best download rate of the last three, among the newest ten runs.", "best", 1),
    ("refresher_download_worst_of_3_bits_per_second", "Worst download rate of the last three, among the newest ten runs.", "worst", 1),
)


def _value(runs: Sequence[asyncpg.Record], column: str) -> float | None:
    row = runs[0]
    if column == "up":
        return float(row["status"] == "succeeded")
    if column == "server_id":
        identity: Any = row["server_id"]
        ours = row["status"] == "succeeded" and identity and identity.isascii() and identity.isdecimal() and len(identity) <= 15
        return float(identity) if ours else None
    if column == "failed_in_a_row":
        return float(len(list(takewhile(lambda run: run["status"] == "failed", runs))))
    if column in _OF_THREE:
        last = [run["download_bps"] for run in runs if run["download_bps"] is not None][:3]
        return float(_OF_THREE[column](last)) if len(last) == 3 else None
    value: float | None = row[column]
    return value


_OF_THREE: dict[str, Callable[[list[float]], float]] = {"best": max, "worst": min}


def add_metrics(app: FastAPI, service: Service, last: LastValues) -> None:
    """Add `/metrics`, which reads the last values before it answers."""
    service.registry.register(last)

    async def metrics() -> Response:
        """Give the metrics of this service and the last values of each site, line and engine, for Prometheus."""
        await last.refresh()
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    example = 'speedtest_download_bits_per_second{site="home",engine="speedtest"} 9.42153327e+07\n'
    plain = {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}, "example": example}}}
    app.add_api_route(
        "/metrics",
        metrics,
        tags=["service"],
        summary="Read the metrics",
        operation_id="get_metrics",
        response_class=Response,
        responses={200: plain, **documented(422)},
    )
