"""The names on the bus: subjects, streams, buckets and consumers, all of them."""

import re
from datetime import datetime
from uuid import UUID

TICKS = "TICKS"
RESULTS = "RESULTS"
DEAD = "DEAD"
ADVISORIES = "ADVISORIES"
CLAIMS = "CLAIMS"

SCHEDULES = "refresher-schedules"
RUNNERS = "refresher-runners"
LINES = "refresher-lines"

EVERYTHING = "refresher.>"
ALL_TICKS = "refresher.tick.>"
ALL_MANUAL_TICKS = "refresher.tick.*.*.run.*"
ALL_CLAIMS = "refresher.claim.>"
ALL_RESULTS = "refresher.result.>"
ALL_DEAD = "refresher.dead.>"
ALL_PROVISIONING = "refresher.provision.*"
"""Runners ask on these subjects for the consumer of their line; the scheduler makes it and answers (core NATS)."""
LIST_DEAD, GET_DEAD, REDRIVE_DEAD, DROP_DEAD = (f"refresher-dead-letters.{verb}" for verb in ("list", "get", "redrive", "drop"))
"""The API asks on these about dead letters; a recorder answers (core NATS, shared/letters.py).

Not below `refresher.`: who follows everything there would count as somebody who might answer, and whoever asks while no
recorder is there would wait instead of being told.
"""
EXHAUSTED = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{TICKS}.>"
"""What the server says when a tick has been delivered as often as its consumer allows."""

RECORDER = "recorder"
"""The durable consumer that all recorders share, on RESULTS and on ADVISORIES."""

SCHEDULER = "scheduler-"
"""What the name of a scheduler's own consumer on the bucket of schedules begins with."""

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


def claim(site: str, run_id: UUID) -> str:
    """Return the subject on which the line says that a run is its own that any line of a site may measure."""
    return f"refresher.claim.{site}.{run_id.hex}.has"


def wish(site: str, run_id: UUID) -> str:
    """Return the subject on which a line that is busy says that it can measure such a run, and waits to."""
    return f"refresher.claim.{site}.{run_id.hex}.wants"


def result(site: str, schedule: str | None) -> str:
    """Return the subject of a result."""
    return f"refresher.result.{site}.{schedule or MANUAL}"


def is_result_of(site: str, subject: str) -> bool:
    """Return whether results of a site come on a subject."""
    return subject.startswith(f"refresher.result.{site}.")


def is_result(subject: str) -> bool:
    """Return whether results come on a subject: one of a site and a schedule, without wildcards."""
    return bool(_RESULT.fullmatch(subject))


def progress(run_id: UUID) -> str:
    """Return the subject of a run's progress (core NATS)."""
    return f"refresher.progress.{run_id}"


def dead(stream: str) -> str:
    """Return the subject of a message from `stream` that could not be used."""
    return f"refresher.dead.{stream.lower()}"


def provisioning(site: str, line: str | None) -> str:
    """Return the subject on which a runner asks for the consumer of its line."""
    return f"refresher.provision.{place(site, line)}"


def options(site: str, line: str | None, engine: str) -> str:
    """Return the subject on which a runner says what is wrong with the options of an engine (core NATS)."""
    return f"refresher-options.{place(site, line)}.{engine}"


def place_of(token: str) -> tuple[str, str | None]:
    """Return the site and the line that the last token of such a subject stands for."""
    site, _, line = token.partition("+")
    return site, line or None


def runner_consumer(site: str, line: str | None = None) -> str:
    """Return the name of the durable consumer that the runners of a line share."""
    return f"{_RUNNER}{place(site, line)}"


def place_of_consumer(consumer: str) -> tuple[str, str | None] | None:
    """Return site and line whose runners share a consumer, or None when it is not one of theirs."""
    return place_of(consumer.removeprefix(_RUNNER)) if consumer.startswith(_RUNNER) else None


def place(site: str, line: str | None) -> str:
    """Return the token that stands for a line of a site."""
    return f"{site}+{line}" if line else site


_RUNNER = "runner-"
_RESULT = re.compile(r"refresher\.result\.[^\s.*>]+\.[^\s.*>]+")
