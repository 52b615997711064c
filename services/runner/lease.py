"""The right to measure on a line: of all its runners one has it, whoever is handed the ticks.

The server pins a line's ticks to one runner, and forgets which one when it is started anew: another may then be handed the next
tick while the first is still measuring. So a runner that measures holds a key of the bucket of lines, which nobody else
can take before it expires, and renews it until it is done.

Without the bus there is nobody to ask: a runner that is cut off measures all the same, since the tests of an outage are those that
matter most.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from pydantic import ValidationError

from shared import subjects
from shared.connect import NATS_AWAY
from shared.events import Lease
from shared.provision import LEASED_S

log = logging.getLogger(__name__)

RENEW_AFTER_S = LEASED_S / 3
_ANSWERS_WITHIN_S = 2.0
_ASK_AGAIN_S = 0.5
_NOT_THE_LAST = 10071
"""What the server says to a message that was to come after another one than it does."""
_STREAM = f"KV_{subjects.LINES}"


class LineLease:
    """The lease of one runner on its line."""

    def __init__(self, bus: Callable[[], tuple[Client, JetStreamContext]], runner: str, site: str, line: str | None) -> None:
        self._bus, self._runner, self._site, self._line = bus, runner, site, line
        self._subject = f"$KV.{subjects.LINES}.{subjects.place(site, line)}"
        self._sequence = 0
        """Of this runner's own last message; 0 once it has expired."""
        self._written_at = float("-inf")

    @asynccontextmanager
    async def held(self, until: datetime) -> AsyncIterator[None]:
        """Wait until the line is this runner's, or `until` has come; keep it so for the length of the block.

        It is kept a while longer, so that runs in quick succession cost one message and not one each.
        """
        await self._take(until)
        renewing = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            renewing.cancel()

    async def give_back(self) -> None:
        """Let the next runner have the line soon and not only when this one's lease has expired."""
        if self._has_it():
            await self._write(1)
            self._written_at, self._sequence = float("-inf"), 0

    async def _take(self, until: datetime) -> None:
        told: str | None = None
        while datetime.now(UTC) < until:
            if time.monotonic() - self._written_at < RENEW_AFTER_S:
                return
            holder = await self._write(LEASED_S)
            if holder is None:
                return
            if holder != told:
                log.info("waiting for the line", extra={"line": self._line, "measured_by": holder})
                told = holder
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_AFTER_S)
            if holder := await self._write(LEASED_S):
                log.warning("another runner has the line by now", extra={"line": self._line, "runner": holder})

    def _has_it(self) -> bool:
        return time.monotonic() - self._written_at < LEASED_S

    async def _write(self, for_s: float) -> str | None:
        """Write this runner's name to the line's key; where another one's is there return that, and write nothing."""
        try:
            if await self._publish(self._sequence if self._has_it() else 0, for_s):
                return None
            # it may be this runner's own, whose acknowledgement was lost
            _, js = self._bus()
            found = await js.get_last_msg(_STREAM, self._subject, direct=True)
            holder = Lease.model_validate_json(found.data or b"").runner
            if holder == self._runner and await self._publish(found.seq or 0, for_s):
                return None
        except NotFoundError:
            return "nobody"  # it has expired since
        except ValidationError:
            return "somebody who wrote what is no lease"  # it expires
        except NATS_AWAY as error:
            log.warning("nobody answers for the line: measuring all the same", extra={"error": str(error) or type(error).__name__})
            return None
        return holder

    async def _publish(self, after: int, for_s: float) -> bool:
        """Write after the message of this sequence (0: none is there), and return whether that was the last one."""
        _, js = self._bus()
        lease = Lease(site=self._site, line=self._line, runner=self._runner, at=datetime.now(UTC))
        headers = {"Nats-Expected-Last-Subject-Sequence": str(after), "Nats-TTL": f"{for_s:.0f}s"}
        began = time.monotonic()
        try:
            stored = await js.publish(self._subject, lease.to_json(), _ANSWERS_WITHIN_S, headers=headers)
        except APIError as error:
            if error.err_code == _NOT_THE_LAST:
                return False
            raise
        self._sequence, self._written_at = stored.seq, began
        return True
