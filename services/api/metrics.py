"""What Prometheus reads: the requests, the live clients, and the last values from the database."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
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
from services.api.overdue import RUNS, awaited_since
from services.api.problems import documented
from services.api.queries import LATEST_PER_LINE
from shared.errors import Unavailable
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
    """The newest results of each site and engine, read at every scrape. A value is absent after a failure, never 0 or -1."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database, self._bus = database, bus
        self._rows: Sequence[asyncpg.Record] = ()
        self._awaited_since: dict[tuple[str, str], datetime] = {}

    async def refresh(self) -> None:
        """Read them anew; while Postgres or NATS is away there are none of it, and the scrape goes on."""
        rows, stored = await asyncio.gather(
            _or_none(self._database.rows(LATEST_PER_LINE)),
            _or_none(store.everything(self._bus)),
        )
        schedules = [each.schedule for each in stored or () if each.schedule]
        # without Postgres nobody can say that a result is missing
        awaited = {} if rows is None else await asyncio.to_thread(awaited_since, schedules, datetime.now(UTC))
        self._rows, self._awaited_since = rows or (), awaited

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, under the names that speed test dashboards use."""
        for name, help_text, column, factor in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=("site", "engine"))
            for row in self._rows:
                value = _value(row, column)
                if value is not None:
                    gauge.add_metric((row["site"], row["engine"]), value * factor)
            yield gauge
        limit = GaugeMetricFamily(
            "refresher_result_age_limit_seconds",
            f"An older newest result means that the last {RUNS} due runs left none.",
            labels=("site", "engine"),
        )
        for line, since in self._awaited_since.items():
            limit.add_metric(line, (datetime.now(UTC) - since).total_seconds())
        yield limit


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
    ("refresher_result_age_seconds", "Time since the newest run that succeeded or failed ended.", "age_s", 1),
    ("refresher_failed_runs_in_a_row", "Failed runs since the last success, among the newest ten.", "failed_in_a_row", 1),
    ("refresher_download_best_of_3_bits_per_second", "Best download rate of the last three, among the newest ten runs.", "best", 1),
    ("refresher_download_worst_of_3_bits_per_second", "Worst download rate of the last three, among the newest ten runs.", "worst", 1),
)


def _value(row: asyncpg.Record, column: str) -> float | None:
    if column == "up":
        return float(row["status"] == "succeeded")
    if column == "server_id":
        identity: Any = row["server_id"]
        ours = row["status"] == "succeeded" and identity and identity.isascii() and identity.isdecimal() and len(identity) <= 15
        return float(identity) if ours else None
    if column == "failed_in_a_row":
        return float(len(list(takewhile(lambda status: status == "failed", row["statuses"]))))
    if column in _OF_THREE:
        last = [rate for rate in row["rates"] if rate is not None][:3]
        return float(_OF_THREE[column](last)) if len(last) == 3 else None
    value: float | None = row[column]
    return value


_OF_THREE: dict[str, Callable[[list[float]], float]] = {"best": max, "worst": min}


def add_metrics(app: FastAPI, service: Service, last: LastValues) -> None:
    """Add `/metrics`, which reads the last values before it answers."""
    service.registry.register(last)

    async def metrics() -> Response:
        """Give the metrics of this service and the last values of each site and engine, for Prometheus."""
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
