"""Store one-minute schedules for beat: `<number> <when the first is due, seconds since 1970> <over how many seconds they spread>`."""

import json
import sys
from datetime import UTC, datetime

import django

django.setup()

from django.db import connection  # noqa: E402 - the settings come first
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks  # noqa: E402

EVERY_S = 60


def main(count: int, first_due_at: float, over_s: float) -> None:
    """Replace all there are; each is due a minute after it is said to have run last."""
    interval, _ = IntervalSchedule.objects.get_or_create(every=EVERY_S, period=IntervalSchedule.SECONDS)
    with connection.cursor() as cursor:  # a delete through the ORM would tell beat of every single one
        cursor.execute("TRUNCATE django_celery_beat_periodictask")
    made = []
    for number in range(count):
        due_at = first_due_at + number * over_s / count
        name, last_run_at = f"s{number}", datetime.fromtimestamp(due_at - EVERY_S, UTC)
        made.append(PeriodicTask(name=name, task="noop", interval=interval, args=json.dumps([name, due_at]), last_run_at=last_run_at))
    PeriodicTask.objects.bulk_create(made, batch_size=5_000)
    PeriodicTasks.update_changed()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
