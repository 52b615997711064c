"""Celery, its broker a Redis: `BENCH_ACKS_LATE=1` acknowledges a task when it is done, as Refresher does with a tick."""

import os

from celery import Celery

from bench.pipeline.peers import storing

app = Celery("bench", broker=os.environ["BENCH_REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=os.environ.get("BENCH_ACKS_LATE") == "1",
    worker_prefetch_multiplier=64,  # with the default of 4 a worker asks Redis more often
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
store = app.task(name="store")(storing.store)
send = store.delay
