"""Say that this runner is there, in the bucket of runners, every few seconds."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from uuid import UUID

from nats.js import JetStreamContext

from services.runner.settings import RunnerSettings
from shared import subjects
from shared.connect import NATS_AWAY
from shared.provision import HEARTBEAT_S
from shared.runners import Runner
from shared.waiting import happens

log = logging.getLogger(__name__)

SETTLES_S = 0.1
"""So long a change waits to be written: a run that is over by then costs no message, which the server would write to its disk."""


class Heartbeat:
    """The sign of life of one runner."""

    def __init__(self, runner_id: str, settings: RunnerSettings, engines: Sequence[str]) -> None:
        self._id, self._settings, self._engines = runner_id, settings, tuple(engines)
        self._started_at = datetime.now(UTC)
        self._version, self._host = version("refresher"), socket.gethostname()  # once: it reads the metadata of the package
        self._changed = asyncio.Event()
        self._run_id: UUID | None = None
        self.beside: set[UUID] = set()
        """The runs that are measured beside the line, which the next sign of life tells; none is written for them."""

    def busy_with(self, run_id: UUID | None) -> None:
        """Say which run is being measured, or that none is."""
        self._run_id = run_id
        self._changed.set()

    async def beat(self, js: JetStreamContext) -> None:
        """Write to the bucket every few seconds, and soon after something changed, for ever; then take the entry out."""
        # Without nats-py's bucket, which asks for the stream first: that would tell a runner the names of all others.
        key = f"$KV.{subjects.RUNNERS}.{self._settings.site}.{self._id}"
        try:
            while True:
                self._changed.clear()
                try:
                    await js.publish(key, self._now().to_json())
                except NATS_AWAY as error:
                    log.warning("heartbeat not written", extra={"error": str(error) or type(error).__name__})
                if await happens(self._changed, HEARTBEAT_S):
                    await asyncio.sleep(SETTLES_S)
        finally:
            try:
                await js.publish(key, b"", headers={"KV-Operation": "PURGE", "Nats-Rollup": "sub"})
            except NATS_AWAY:
                log.info("left without saying goodbye: the entry expires by itself")

    def _now(self) -> Runner:
        return Runner(
            id=self._id,
            site=self._settings.site,
            line=self._settings.line,
            labels=self._settings.labels,
            engines=self._engines,
            version=self._version,
            host=self._host,
            started_at=self._started_at,
            seen_at=datetime.now(UTC),
            run_id=self._run_id,
            beside=tuple(self.beside),
        )
