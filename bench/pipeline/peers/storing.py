"""Django's ORM on the table `results`: what a worker of either peer stores for a task."""

from datetime import UTC, datetime
from uuid import UUID

import django
from django.conf import settings

from bench.pipeline.peers.database import DATABASES

settings.configure(USE_TZ=True, DATABASES=DATABASES)
django.setup()

from django.db import models  # noqa: E402 - a model wants the settings first


class Row(models.Model):
    """A row of `results`, which Refresher's own migrations made, indexes and checks included."""

    pk = models.CompositePrimaryKey("due_at", "run_id")
    run_id = models.UUIDField()
    due_at = models.DateTimeField()
    site = models.TextField()
    schedule = models.TextField(null=True)
    trigger = models.TextField()
    engine = models.TextField()
    status = models.TextField()
    runner = models.TextField(null=True)
    attempt = models.IntegerField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField()
    download_bps = models.FloatField(null=True)
    upload_bps = models.FloatField(null=True)
    latency_s = models.FloatField(null=True)
    jitter_s = models.FloatField(null=True)
    packet_loss = models.FloatField(null=True)
    details = models.JSONField(default=dict)
    log = models.TextField(default="")

    class Meta:
        app_label = "bench"
        db_table = "results"
        managed = False


def store(run_id: str, due_at: str, schedule: str) -> None:
    """Store the canned result of a run: what Refresher's engine `noop` measures."""
    started_at = datetime.now(UTC)
    Row.objects.create(
        run_id=UUID(run_id),
        due_at=datetime.fromisoformat(due_at),
        site="home",
        schedule=schedule,
        trigger="schedule",
        engine="noop",
        status="succeeded",
        runner="peer",
        attempt=1,
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )
