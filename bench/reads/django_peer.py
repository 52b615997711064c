"""The same answers by Django and its ORM, as one would write them: run by gunicorn, from a virtual environment of its own."""

import os
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import models
from django.db.models import Avg, Count, Max, Min, Q
from django.db.models.functions import TruncHour
from django.http import HttpRequest, JsonResponse
from django.urls import path

_database = urlsplit(os.environ["BENCH_DATABASE_URL"])
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],  # says how long an answer is
    USE_TZ=True,
    TIME_ZONE="UTC",
    SECRET_KEY="of a benchmark",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _database.path[1:],
            "HOST": os.environ["BENCH_DATABASE_HOST"],
            "PORT": os.environ["BENCH_DATABASE_PORT"],
            "USER": os.environ["BENCH_DATABASE_USER"],
            "PASSWORD": os.environ["BENCH_DATABASE_PASSWORD"],
            "CONN_MAX_AGE": None,
        }
    },
)
django.setup()

SERVER = ("id", "name", "sponsor", "url", "host", "country", "country_code", "latitude", "longitude", "distance_m")
CLIENT = ("isp", "address", "country_code", "latitude", "longitude")
METRICS = (
    *("download_bps", "upload_bps", "latency_s", "jitter_s", "packet_loss"),
    *("download_latency_s", "upload_latency_s", "responsiveness_rpm"),
)
STATUSES = ("succeeded", "failed", "skipped", "missed")
TEXTS = (
    *("site", "schedule", "trigger", "engine", "engine_version", "fallback_for", "status", "runner", "line"),
    *("bufferbloat_grade", "limited_by", "confidence", "failure_kind", "failure_message"),
    *(f"server_{name}" for name in SERVER[:7]),
    *(f"client_{name}" for name in CLIENT[:3]),
)
NUMBERS = (
    *METRICS,
    "download_spread",
    "upload_spread",
    "server_latitude",
    "server_longitude",
    "server_distance_m",
    *("client_latitude", "client_longitude"),
)
MOMENTS = ("due_at", "start_at", "started_at", "finished_at", "recorded_at")

Result = type(
    "Result",
    (models.Model,),
    {
        "__module__": __name__,
        "run_id": models.UUIDField(primary_key=True),
        "attempt": models.IntegerField(),
        "download_bytes": models.BigIntegerField(null=True),
        "upload_bytes": models.BigIntegerField(null=True),
        "details": models.JSONField(),
        **{name: models.TextField(null=True) for name in TEXTS},
        **{name: models.FloatField(null=True) for name in NUMBERS},
        **{name: models.DateTimeField(null=True) for name in MOMENTS},
        "Meta": type("Meta", (), {"app_label": "bench", "db_table": "results", "managed": False}),
    },
)


class Percentile(models.Aggregate):
    function = "PERCENTILE_CONT"
    template = "%(function)s(%(share)s) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = models.FloatField()


def text(moment: datetime | None) -> str | None:
    return moment and moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def part(result: models.Model, name: str, fields: tuple[str, ...]) -> dict | None:
    found = {field: getattr(result, f"{name}_{field}") for field in fields}
    return found if any(value is not None for value in found.values()) else None


PLAIN = (
    *("site", "schedule", "trigger", "engine", "engine_version", "fallback_for", "status", "runner", "line", "attempt"),
    *(*METRICS, "bufferbloat_grade", "download_spread", "upload_spread", "limited_by", "confidence", "download_bytes", "upload_bytes"),
)


def view(result: models.Model) -> dict:
    return {
        "run_id": str(result.run_id),
        **{name: getattr(result, name) for name in PLAIN},
        **{name: text(getattr(result, name)) for name in MOMENTS},
        "start_at": text(result.start_at or result.due_at),
        "server": part(result, "server", SERVER),
        "client": part(result, "client", CLIENT),
        "failure": {"kind": result.failure_kind, "message": result.failure_message} if result.failure_kind else None,
        "details": result.details,
    }


def results(request: HttpRequest) -> JsonResponse:
    """The newest, or the newest before a position, of a site or of all."""
    found = Result.objects.order_by("-due_at", "-run_id")
    if site := request.GET.get("site"):
        found = found.filter(site=site)
    if status := request.GET.get("status"):
        found = found.filter(status=status)
    if before := request.GET.get("before"):
        at, run_id = datetime.fromisoformat(before), request.GET["run_id"]
        found = found.filter(Q(due_at__lt=at) | Q(due_at=at, run_id__lt=run_id), due_at__lte=at)
    return JsonResponse({"items": [view(each) for each in found[: int(request.GET["limit"])]]})


def summary(request: HttpRequest) -> JsonResponse:
    """Buckets of an hour, empty ones included."""
    since, until = (datetime.fromisoformat(request.GET[name]) for name in ("from", "to"))
    found = Result.objects.filter(due_at__gte=since, due_at__lt=until)
    if schedule := request.GET.get("schedule"):
        found = found.filter(schedule=schedule)
    counts = {status: Count("run_id", filter=Q(status=status)) for status in STATUSES}
    figures = {
        f"{name}__{figure}": kind(name, **options)
        for name in METRICS
        for figure, kind, options in (
            *(("count", Count, {}), ("mean", Avg, {}), ("min", Min, {}), ("max", Max, {})),
            *(("p50", Percentile, {"share": 0.5}), ("p95", Percentile, {"share": 0.95})),
        )
    }
    rows = {
        row["hour"]: row for row in found.annotate(hour=TruncHour("due_at")).values("hour").annotate(**counts, **figures).order_by("hour")
    }
    hours = [since + timedelta(hours=n) for n in range(int((until - since) / timedelta(hours=1)))]
    return JsonResponse({"buckets": [bucket(hour, rows.get(hour)) for hour in hours]})


def bucket(hour: datetime, row: dict | None) -> dict:
    def distribution(name: str) -> dict | None:
        if row is None or not row[f"{name}__count"]:
            return None
        return {figure: row[f"{name}__{figure}"] for figure in ("count", "mean", "min", "max", "p50", "p95")}

    return {
        "from": text(hour),
        "to": text(hour + timedelta(hours=1)),
        "counts": {status: row[status] if row else 0 for status in STATUSES},
        "metrics": {name: distribution(name) for name in METRICS},
    }


urlpatterns = [path("results", results), path("summary", summary)]
application = get_wsgi_application()
