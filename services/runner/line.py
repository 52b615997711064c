"""One line, one run at a time: which of the ticks that come goes first, and what becomes of the others.

Of all runners of a line one is handed all of its ticks (its consumer is pinned), so the order is decided here and nowhere else.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from uuid import UUID

from nats.aio.msg import Msg

from services.runner.measure import not_run
from shared.connect import NATS_AWAY
from shared.events import Failure, Result, Status, Tick
from shared.provision import REDELIVER_AFTER_S
from shared.waiting import happens

log = logging.getLogger(__name__)

REMEMBERED = 1_000

_numbers = count()


@dataclass(eq=False)
class Offer:
    """A tick that was handed to this runner, and the message to acknowledge."""

    tick: Tick
    message: Msg
    number: int = field(default_factory=lambda: next(_numbers))
    ended_by: Tick | None = None
    """The tick for which its run is cut short."""

    @property
    def attempt(self) -> int:
        """How often the tick has been delivered."""
        return self.message.metadata.num_delivered or 1


Measure = Callable[[Offer], Awaitable[Result]]
Publish = Callable[[Offer, Result], Awaitable[None]]


class Line:
    """Takes ticks with `offer`, measures them one after another in `run`, and hands back with `stop` what has not ended.

    `measure` runs an engine and returns a result whatever happens; `publish` returns when the result is in the stream.
    """

    def __init__(self, runner: str, measure: Measure, publish: Publish) -> None:
        self._runner, self._measure, self._publish = runner, measure, publish
        self._waiting: list[Offer] = []
        self._current: Offer | None = None
        self._measuring: asyncio.Task[Result] | None = None
        self._ended: deque[UUID] = deque(maxlen=REMEMBERED)
        self._changed = asyncio.Event()
        self._stopping = False

    async def offer(self, offers: list[Offer]) -> None:
        """Take ticks in: each waits for its turn, or ends as its overlap policy says."""
        for offer in offers:
            if offer.tick.run_id in self._ended:
                await _acknowledge(offer.message)  # its result is in the stream: only the acknowledgement was lost
            elif known := self._known(offer.tick.run_id):
                known.message = offer.message
            else:
                await self._take(offer)
        self._changed.set()

    async def run(self) -> None:
        """Measure what waits, the highest priority first and then in order of arrival, for ever."""
        keeping = asyncio.create_task(self._keep())
        try:
            while True:
                self._changed.clear()
                await self._expire()
                if self._waiting and not self._stopping:
                    await self._measure_next()
                else:
                    await happens(self._changed, 1)
        finally:
            keeping.cancel()

    async def stop(self) -> None:
        """Cut the run short, if there is one, and hand back every tick that has not ended: another runner gets it at once."""
        self._stopping = True
        if self._measuring:
            self._measuring.cancel()
            await asyncio.wait({self._measuring})
        for offer in (*([self._current] if self._current else []), *self._waiting):
            log.info("run handed back", extra={"run_id": offer.tick.run_id})
            await offer.message.nak()
        self._current, self._waiting = None, []

    def _known(self, run_id: UUID) -> Offer | None:
        offers = (self._current, *self._waiting) if self._current else self._waiting
        return next((offer for offer in offers if offer and offer.tick.run_id == run_id), None)

    async def _take(self, offer: Offer) -> None:
        others = self._waiting if self._current is None else [self._current, *self._waiting]
        match offer.tick.overlap:
            case "skip" if others:
                return await self._skip(offer, f"the line was busy with the {_name(others[0].tick)}")
            case "queue_one" if self._waiting:
                return await self._skip(offer, f"the {_name(self._waiting[0].tick)} was waiting for the line already")
            case "cancel_other" if self._current and self._measuring:
                self._current.ended_by = offer.tick
                self._measuring.cancel()
        self._waiting.append(offer)
        return None

    async def _skip(self, offer: Offer, reason: str) -> None:
        await self._end(offer, not_run(offer.tick, self._runner, offer.attempt, Status.SKIPPED, Failure(kind="line_busy", message=reason)))

    async def _expire(self) -> None:
        """End what has waited for too long: not when the line is free, but as soon as it is too late."""
        now = datetime.now(UTC)
        for offer in [each for each in self._waiting if each.tick.expires_at <= now]:
            self._waiting.remove(offer)
            reason = f"the line was busy until it was too late to start, {offer.tick.expires_at:%Y-%m-%d %H:%M:%S} UTC"
            await self._end(offer, not_run(offer.tick, self._runner, offer.attempt, Status.MISSED, Failure(kind="expired", message=reason)))

    async def _measure_next(self) -> None:
        offer = min(self._waiting, key=lambda each: (each.tick.overlap != "cancel_other", -each.tick.priority, each.number))
        self._waiting.remove(offer)
        self._current = offer
        started_at = datetime.now(UTC)
        measuring = self._measuring = asyncio.ensure_future(self._measure(offer))
        while not measuring.done():
            await asyncio.wait({measuring}, timeout=1)
            await self._expire()
        self._measuring = None
        if measuring.cancelled():
            if offer.ended_by is None:
                return  # told to stop: it is handed back
            reason = f"it was cut short for the {_name(offer.ended_by)}"
            ended = not_run(offer.tick, self._runner, offer.attempt, Status.SKIPPED, Failure(kind="cancelled", message=reason))
            await self._end(offer, ended.model_copy(update={"started_at": started_at}))
        else:
            await self._end(offer, measuring.result())
        self._current = None

    async def _end(self, offer: Offer, result: Result) -> None:
        """Publish a result and only then acknowledge its tick: a crash in between has it measured again, and stored once."""
        await self._publish(offer, result)
        self._ended.append(offer.tick.run_id)
        await _acknowledge(offer.message)

    async def _keep(self) -> None:
        """Tell the server again and again that these ticks are being looked after."""
        while True:
            await asyncio.sleep(REDELIVER_AFTER_S[0] / 3)
            for offer in (*([self._current] if self._current else []), *self._waiting):
                try:
                    await offer.message.in_progress()
                except NATS_AWAY as error:
                    log.warning("could not say that the run goes on", extra={"error": str(error) or type(error).__name__})


def _name(tick: Tick) -> str:
    return f"run of {tick.schedule}" if tick.schedule else "run that was asked for"


async def _acknowledge(message: Msg) -> None:
    try:
        await message.ack_sync()
    except NATS_AWAY as error:
        # the result is safe; should the acknowledgement be lost, the tick comes again and is acknowledged then
        log.warning("tick not acknowledged", extra={"error": str(error) or type(error).__name__})
