"""The application for which beat fires; nobody works here, its queue is read by `listen`."""

import os

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS_URL"])
app.conf.update(enable_utc=True, timezone="UTC", broker_connection_retry_on_startup=True)
