"""Who is there: runners and what they are busy with, and schedulers."""

import time
from datetime import datetime
from uuid import UUID

from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo
from pydantic import ValidationError

from services.recorder.verdict import Place, Present
from shared import subjects
from shared.buckets import entries
from shared.leaf import leaves_of
from shared.runners import Runner


class Presence:
    """Looks who is there, and remembers since when a scheduler is; after `patience_s` it has published what it wanted to."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._scheduler_since: float | None = None
        self._scheduler_seen_at = 0.0

    async def look(self, js: JetStreamContext, now: datetime) -> Present:
        """Return who is there.

        Raises: nats.errors.Error.
        """
        runners: set[Place] = set()
        busy: set[UUID] = set()
        for entry in await entries(js, subjects.RUNNERS):
            try:
                runner = Runner.model_validate_json(entry.value or b"")
            except ValidationError:
                continue  # somebody else wrote to the bucket; it expires
            runners.add((runner.site, runner.line))
            if runner.run_id:
                busy.add(runner.run_id)
            busy.update(runner.beside)
        acknowledged = {
            place: info.ack_floor.stream_seq if info.ack_floor else 0
            for info in await _consumers(js, subjects.TICKS)
            if (place := subjects.place_of_consumer(info.name))
        }
        self._look_for_schedulers(await _consumers(js, f"KV_{subjects.SCHEDULES}"))
        since = self._scheduler_since
        has_scheduler = since is not None and time.monotonic() - since >= self._patience_s
        return Present(now, frozenset(runners), await _leaves(js), frozenset(busy), acknowledged, has_scheduler)

    def scheduler_is_catching_up(self) -> None:
        """Note that a scheduler publishes what was due long ago: the patience with it begins anew."""
        self._scheduler_since = time.monotonic()

    def _look_for_schedulers(self, consumers: list[ConsumerInfo]) -> None:
        """A scheduler follows the bucket of schedules through a consumer of its own, and always waits at it for the next change."""
        moment = time.monotonic()
        if any(info.name.startswith(subjects.SCHEDULER) and info.num_waiting for info in consumers):
            self._scheduler_since = moment if self._scheduler_since is None else self._scheduler_since
            self._scheduler_seen_at = moment
        elif moment - self._scheduler_seen_at >= self._patience_s:  # between two questions it may not wait for a moment
            self._scheduler_since = None


async def _leaves(js: JetStreamContext) -> frozenset[str]:
    return frozenset(leaves_of((await js.stream_info(subjects.RESULTS)).config))


async def _consumers(js: JetStreamContext, stream: str) -> list[ConsumerInfo]:
    found: list[ConsumerInfo] = []
    while page := await js.consumers_info(stream, len(found)):
        found += page
    return found
