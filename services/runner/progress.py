"""Say how a run is getting on: to whoever listens, a few times a second, without ever holding up the measurement."""

import asyncio
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from nats.aio.client import Client

from shared import subjects
from shared.events import Progress, Tick

EVERY_S = 0.25
SETTLES_S = 0.05
"""So long the first word of a run waits to be sent: one that is over by then costs no message."""


class Reporter:
    """Call it with the phase, the fraction of it that is done and the rate of the moment; between two sendings calls cost nothing.

    `with Reporter(client, tick) as report: ...` says nothing after the block.
    """

    def __init__(self, client: Client, tick: Tick) -> None:
        self._client, self._tick = client, tick
        self._began = time.monotonic()
        self._said: tuple[str, float | None, float | None] = ("", None, None)
        self._said_at = 0.0
        self._first: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._first:
            self._first.cancel()

    def __call__(self, phase: str, fraction: float | None = None, rate_bps: float | None = None) -> None:
        """Take note of progress."""
        now = time.monotonic()
        recent = phase == self._said[0] and now - self._said_at < EVERY_S
        if recent or not self._client.is_connected or (self._sending and not self._sending.done()):
            return
        self._said, self._said_at = (phase, fraction, rate_bps), now
        if now - self._began >= SETTLES_S:
            self._send()
        elif self._first is None:
            self._first = asyncio.get_running_loop().call_later(SETTLES_S, self._send)

    def _send(self) -> None:
        phase, fraction, rate_bps = self._said
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
