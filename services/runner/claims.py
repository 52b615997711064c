"""Runs that any line of a site may measure: a line has one when the stream of claims holds its claim.

The stream keeps one message per subject, so one line is first. A line claims a run when it would start it, and not before, so
the line that is free first has it; and one that is to end as missed, so that one line says so. The claim is the line's, not the
process's: after a crash the line's next runner goes on.

A line that lacks the engine or a label leaves a run to others for a while. One that could measure it and is busy says within a
few seconds that it wants it: then it stays with that one.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from enum import Enum

from nats.aio.client import Client
from nats.js import JetStreamContext

from services.runner.offer import Offer
from shared import subjects
from shared.claims import said
from shared.connect import NATS_AWAY
from shared.events import Claim, Tick
from shared.provision import UNPINNED_AFTER_S
from shared.publish import publish

log = logging.getLogger(__name__)

LEFT_S = UNPINNED_AFTER_S + 5.0
"""So long a line that cannot measure a run leaves it to others: long enough for a line whose runner has just changed."""
LEFT_TO_FALLBACK_S = LEFT_S * 1.5
"""So long, where it has not even the engine that measures when the first one failed."""

_TTL = "Nats-TTL"
_ANSWERS_WITHIN_S = 2.0
_QUIET_S = 5.0
"""How long the bus is left alone when it did not answer: a line that has ticks of its own must not wait for it again and again."""


class Whose(Enum):
    """What becomes of a run that any line may measure."""

    OURS = "ours"
    ANOTHERS = "another's"
    OPEN = "open"


def left_for_s(tick: Tick, engines: Sequence[str], labels: Sequence[str]) -> float:
    """Return how long a line with these engines and labels leaves a run to the other lines of its site: 0 where it can measure it."""
    if not set(tick.labels) <= set(labels):
        return LEFT_TO_FALLBACK_S
    if tick.engine in engines:
        return 0.0
    return LEFT_S if tick.fallback and tick.fallback.engine in engines else LEFT_TO_FALLBACK_S


class Claims:
    """The claims of one line of a site."""

    def __init__(
        self,
        bus: Callable[[], tuple[Client, JetStreamContext]],
        runner: str,
        place: tuple[str, str | None],
        engines: Sequence[str],
        labels: Sequence[str],
    ) -> None:
        self._bus, self._runner = bus, runner
        self._site, self._line = place
        self._engines, self._labels = engines, labels
        self._quiet_until = 0.0

    async def take(self, offer: Offer) -> Whose:
        """Claim a run that this line would start now, or end as missed, and return whose it is.

        It stays open while the bus does not answer, and for as long as this line leaves it to others.
        """
        return await self._unless_quiet(self._take, offer)

    async def look(self, offer: Offer) -> Whose:
        """Return whose a run is that waits; where it is nobody's and this line can measure it, the others are told that it wants to."""
        return await self._unless_quiet(self._look, offer)

    async def _unless_quiet(self, ask: Callable[[Offer], Awaitable[Whose]], offer: Offer) -> Whose:
        if time.monotonic() < self._quiet_until:
            return Whose.OPEN
        try:
            return await ask(offer)
        except NATS_AWAY as error:
            self._quiet_until = time.monotonic() + _QUIET_S
            told = {"run_id": offer.tick.run_id, "error": str(error) or type(error).__name__}
            log.warning("it is not known which line has the run", extra=told)
            return Whose.OPEN

    async def _take(self, offer: Offer) -> Whose:
        tick = offer.tick
        if self._leaves(offer) and datetime.now(UTC) < tick.expires_at:
            return Whose.OPEN
        _, js = self._bus()
        if left_for_s(tick, self._engines, self._labels):
            wish = await said(js, subjects.wish(tick.site, tick.run_id), direct=True)
            if wish and wish.line != self._line:
                return Whose.ANOTHERS
        subject = subjects.claim(tick.site, tick.run_id)
        if await self._say(subject, offer):
            return Whose.OURS
        held = await said(js, subject, direct=True)
        if held is None:
            return Whose.OPEN  # the server that was asked has not heard of it yet
        return Whose.OURS if held.line == self._line else Whose.ANOTHERS

    async def _look(self, offer: Offer) -> Whose:
        tick = offer.tick
        _, js = self._bus()
        held = await said(js, subjects.claim(tick.site, tick.run_id), direct=True)
        if held is not None and held.line != self._line:
            return Whose.ANOTHERS
        if held is None and not offer.is_wished_for and not self._leaves(offer):
            await self._say(subjects.wish(tick.site, tick.run_id), offer)
            offer.is_wished_for = True
        return Whose.OPEN

    def _leaves(self, offer: Offer) -> bool:
        return time.monotonic() - offer.since < left_for_s(offer.tick, self._engines, self._labels)

    async def _say(self, subject: str, offer: Offer) -> bool:
        """Publish what this line says of a run, and return whether it is the first to."""
        client, js = self._bus()
        if not client.is_connected:
            raise ConnectionError("not connected")
        claim = Claim(run_id=offer.tick.run_id, site=self._site, line=self._line, runner=self._runner, at=datetime.now(UTC))
        # an id that nobody can know: who publishes a message of the same one first would have this one dropped
        message_id = secrets.token_hex(16)
        # kept for as long as the tick: a line whose runner comes later, or that is new, finds both
        headers = {name: value for name, value in (offer.message.headers or {}).items() if name == _TTL}
        return await publish(js, subjects.CLAIMS, subject, claim.to_json(), message_id, headers, timeout=_ANSWERS_WITHIN_S)
