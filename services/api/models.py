"""What the API answers, for its documentation: the JSON itself is built by Postgres (see queries.py)."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shared.events import Confidence, Grade, Limit, Status, Trigger

EXAMPLE: dict[str, Any] = {
    "run_id": "0b6ef0d4-4e5a-5e0e-8a7a-0f6b8a3c1d52",
    "site": "home",
    "schedule": "hourly",
    "trigger": "schedule",
    "engine": "speedtest",
    "engine_version": "2.1.3",
    "fallback_for": None,
    "status": "succeeded",
    "runner": "attic-1",
    "line": None,
    "attempt": 1,
    "due_at": "2026-10-03T07:24:10.000000Z",
    "start_at": "2026-10-03T07:24:10.000000Z",
    "started_at": "2026-10-03T07:24:10.012000Z",
    "finished_at": "2026-10-03T07:24:33.401000Z",
    "recorded_at": "2026-10-03T07:24:33.407000Z",
    "download_bps": 94215332.7,
    "upload_bps": 38120945.1,
    "latency_s": 0.0123,
    "jitter_s": 0.0011,
    "packet_loss": 0.0,
    "download_latency_s": 0.0381,
    "upload_latency_s": 0.0522,
    "responsiveness_rpm": 1140.0,
    "bufferbloat_grade": "B",
    "download_spread": 0.004,
    "upload_spread": 0.006,
    "limited_by": "line",
    "confidence": "reliable",
    "download_bytes": 117440512,
    "upload_bytes": 47185920,
    "server": {
        "id": "4711",
        "name": "Frankfurt",
        "sponsor": "Example Net",
        "url": "http://speedtest.example.net/speedtest/upload.php",
        "host": "speedtest.example.net:8080",
        "country": "Germany",
        "country_code": "DE",
        "latitude": 50.11,
        "longitude": 8.68,
        "distance_m": 12400.0,
    },
    "client": {"isp": "Example Telecom", "address": "192.0.2.17", "country_code": "DE", "latitude": 50.1, "longitude": 8.5},
    "failure": None,
    "details": {},
}


class ServerView(BaseModel):
    """The far end of a measurement."""

    id: str | None
    name: str | None
    sponsor: str | None
    url: str | None
    host: str | None
    country: str | None
    country_code: str | None
    latitude: float | None
    longitude: float | None
    distance_m: float | None


class ClientView(BaseModel):
    """The near end of a measurement, as the far end sees it."""

    isp: str | None
    address: str | None
    country_code: str | None
    latitude: float | None
    longitude: float | None


class FailureView(BaseModel):
    """Why there is no measurement."""

    kind: str
    message: str


class ResultView(BaseModel):
    """How one run ended. Rates are in bit/s, times in seconds; a number is true or null, never 0 or -1."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    run_id: UUID
    site: str
    schedule: str | None
    """Null for a run that was asked for without a schedule."""
    trigger: Trigger
    engine: str
    engine_version: str | None
    fallback_for: str | None
    """The engine that failed first, where `engine` measured in its place."""
    status: Status
    runner: str | None
    line: str | None
    """The line that was measured; null is the one without a name, `any` where any could have done it and none did."""
    attempt: int
    due_at: datetime
    start_at: datetime
    """`due_at` with the spread of the site and the jitter of the run."""
    started_at: datetime | None
    finished_at: datetime
    recorded_at: datetime
    download_bps: float | None
    upload_bps: float | None
    latency_s: float | None
    jitter_s: float | None
    packet_loss: Annotated[float, Field(ge=0, le=1)] | None
    download_latency_s: float | None
    """Round-trip time while the download fills the line."""
    upload_latency_s: float | None
    responsiveness_rpm: float | None
    """Round trips per minute under load."""
    bufferbloat_grade: Grade | None
    download_spread: float | None
    """How far the rate varied: the range of the middle half of its slices as a share of their median."""
    upload_spread: float | None
    limited_by: Limit | None
    """What held the rates back; other than `line`, the line may carry more."""
    confidence: Confidence | None
    download_bytes: int | None
    upload_bytes: int | None
    server: ServerView | None
    client: ClientView | None
    failure: FailureView | None
    details: dict[str, Any]


class FullResultView(ResultView):
    """How one run ended, with the end of what the engine said."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**EXAMPLE, "log": "Retrieving speedtest.net configuration..."}]})

    log: str


class ResultPage(BaseModel):
    """Results, the newest first, and the cursor of the next page."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [EXAMPLE], "next": "AAYf3ZkqLhALbvDUTlpeDop6D2uKPB1S"}]})

    items: list[ResultView]
    next: str | None
    """Give it as `cursor` for the next page; null on the last."""


class Counts(BaseModel):
    """How many runs ended in which way."""

    succeeded: int
    failed: int
    skipped: int
    missed: int


class Distribution(BaseModel):
    """What was measured. The percentiles are interpolated between the two nearest values (`percentile_cont`).

    In a bucket that is put together from several hours or days of UTC they are approximate, from histograms: within 1 %. In a
    bucket that is one hour or one day of UTC, and wherever rows are read, they are exact.
    """

    count: Annotated[int, Field(ge=1)]
    mean: float
    min: float
    max: float
    p50: float
    p95: float


class Metrics(BaseModel):
    """The distribution of each quantity; null where nothing measured it."""

    download_bps: Distribution | None
    upload_bps: Distribution | None
    latency_s: Distribution | None
    jitter_s: Distribution | None
    packet_loss: Distribution | None
    download_latency_s: Distribution | None
    upload_latency_s: Distribution | None
    responsiveness_rpm: Distribution | None


_RATE: dict[str, Any] = {"count": 24, "mean": 93.1e6, "min": 71.4e6, "max": 94.9e6, "p50": 94.1e6, "p95": 94.8e6}
_SUMMARY: dict[str, Any] = {
    "from": "2026-10-03T22:00:00.000000Z",
    "to": "2026-10-04T22:00:00.000000Z",
    "counts": {"succeeded": 24, "failed": 0, "skipped": 0, "missed": 0},
    "metrics": {
        "download_bps": _RATE,
        "upload_bps": None,
        "latency_s": None,
        "jitter_s": None,
        "packet_loss": None,
        "download_latency_s": None,
        "upload_latency_s": None,
        "responsiveness_rpm": None,
    },
}


class Bucket(BaseModel):
    """What came out in a part of the period."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SUMMARY]})

    since: Annotated[datetime, Field(alias="from")]
    until: Annotated[datetime, Field(alias="to")]
    counts: Counts
    metrics: Metrics


class Summary(BaseModel):
    """What came out in a period, bucket by bucket; a bucket in which nothing was due is there with counts of 0."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"from": _SUMMARY["from"], "to": _SUMMARY["to"], "bucket": "day", "zone": "Europe/Berlin", "buckets": [_SUMMARY]}]
        }
    )

    since: Annotated[datetime, Field(alias="from")]
    until: Annotated[datetime, Field(alias="to")]
    bucket: Literal["none", "hour", "day", "week", "month"]
    zone: str
    buckets: list[Bucket]
