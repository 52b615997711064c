"""The names on the bus: subjects, streams, buckets and consumers, all of them."""

from datetime import datetime
from uuid import UUID

TICKS = "TICKS"
RESULTS = "RESULTS"
DEAD = "DEAD"
ADVISORIES = "ADVISORIES"

SCHEDULES = "refresher-schedules"
RUNNERS = "refresher-runners"

EVERYTHING = "refresher.>"
ALL_TICKS = "refresher.tick.>"
ALL_RESULTS = "refresher.result.>"
ALL_PROGRESS = "refresher.progress.>"
ALL_DEAD = "refresher.dead.>"
ALL_PROVISIONING = "refresher.provision.*"
"""Runners ask on these subjects for the consumer of their site; the scheduler makes it and answers (core NATS)."""
EXHAUSTED = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{TICKS}.>"
"""What the server says when a tick has been delivered as often as its consumer allows."""

RECORDER = "recorder"
"""The durable consumer that all recorders share, on RESULTS and on ADVISORIES."""

MANUAL = "manual"
"""Stands for the schedule of a run that has none."""


def tick(site: str, schedule: str, due_at: datetime) -> str:
    """Return the subject of a scheduled tick: one per schedule, site and instant."""
    return f"refresher.tick.{site}.{schedule}.{int(due_at.timestamp())}"


def manual_tick(site: str, schedule: str | None, run_id: UUID) -> str:
    """Return the subject of a tick that a person asked for; `run` is a word of its own so that a user may be allowed these alone."""
    return f"refresher.tick.{site}.{schedule or MANUAL}.run.{run_id.hex}"


def ticks_of(site: str) -> str:
    """Return the pattern of all ticks of a site."""
    return f"refresher.tick.{site}.>"


def result(site: str, schedule: str | None) -> str:
    """Return the subject of a result."""
    return f"refresher.result.{site}.{schedule or MANUAL}"


def is_result_of(site: str, subject: str) -> bool:
    """Return whether results of a site come on a subject."""
    return subject.startswith(f"refresher.result.{site}.")


def progress(run_id: UUID) -> str:
    """Return the subject of a run's progress (core NATS)."""
    return f"refresher.progress.{run_id}"


def dead(stream: str) -> str:
    """Return the subject of a message from `stream` that could not be used."""
    return f"refresher.dead.{stream.lower()}"


def provisioning(site: str) -> str:
    """Return the subject on which a runner asks for the consumer of its site."""
    return f"refresher.provision.{site}"


def runner_consumer(site: str) -> str:
    """Return the name of the durable consumer that the runners of a site share."""
    return f"{_RUNNER}{site}"


def site_of(consumer: str) -> str | None:
    """Return the site whose runners share a consumer, or None when it is not one of theirs."""
    return consumer.removeprefix(_RUNNER) if consumer.startswith(_RUNNER) else None


_RUNNER = "runner-"
