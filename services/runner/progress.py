"""Say how a run is getting on: to whoever listens, a few times a second, without ever holding up the measurement."""

import asyncio
import time
from datetime import UTC, datetime

from nats.aio.client import Client

from shared import subjects
from shared.events import Progress, Tick

EVERY_S = 0.25


class Reporter:
    """Call it with the phase, the fraction of it that is done and the rate of the moment; between two sendings calls cost nothing."""

    def __init__(self, client: Client, tick: Tick) -> None:
        self._client, self._tick = client, tick
        self._phase = ""
        self._sent_at = 0.0
        self._sending: asyncio.Task[None] | None = None

    def __call__(self, phase: str, fraction: float | None = None, rate_bps: float | None = None) -> None:
        """Take note of progress."""
        now = time.monotonic()
        recent = phase == self._phase and now - self._sent_at < EVERY_S
        if recent or not self._client.is_connected or (self._sending and not self._sending.done()):
            return
        self._phase, self._sent_at = phase, now
        progress = Progress(
            **self._tick.model_dump(include={"run_id", "site", "schedule", "engine"}),
            at=datetime.now(UTC),
            phase=phase,
            fraction=None if fraction is None else min(max(fraction, 0.0), 1.0),
            rate_bps=rate_bps,
        )
        self._sending = asyncio.get_running_loop().create_task(
            self._client.publish(subjects.progress(self._tick.run_id), progress.to_json())
        )
