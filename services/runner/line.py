"""One line, one run at a time: which of the ticks that come goes first, and what becomes of the others.

Of all runners of a line one is handed all of its ticks (its consumer is pinned), so the order is decided here and nowhere else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from services.runner.claims import Claims, Whose
from services.runner.measure import not_run
from services.runner.offer import Ended, Offer
from shared.events import Failure, Result, Status, Tick
from shared.provision import REDELIVER_AFTER_S
from shared.waiting import happens

log = logging.getLogger(__name__)

Measure = Callable[[Offer], Awaitable[Result]]
Publish = Callable[[Sequence[Result]], Awaitable[None]]


LAST_WORDS_S = 2.0
"""So long a runner that is told to stop waits for the stream to take the results that it has."""


class Line:
    """Takes ticks with `offer`, measures them one after another in `run`, and hands back with `stop` what has not ended.

    A tick that is for any line of the site waits at each of them: when it is its turn it is measured if `claims` says that this
    line has it. `measure` runs an engine and returns a result whatever happens; `publish` returns when the results are in the stream.
    """

    def __init__(self, runner: str, measure: Measure, publish: Publish, claims: Claims) -> None:
        self._runner, self._measure, self._publish, self._claims = runner, measure, publish, claims
        self._waiting: list[Offer] = []
        self._current: Offer | None = None
        self._measuring: asyncio.Task[Result] | None = None
        self._ending: asyncio.Task[None] | None = None
        """What publishes the result of the current run."""
        self._ended = Ended()
        self._changed = asyncio.Event()
        self._stopping = False

    async def offer(self, offers: list[Offer]) -> None:
        """Take ticks in: each waits for its turn, or ends as its overlap policy says."""
        for offer in offers:
            if offer.tick.run_id in self._ended:
                await offer.acknowledge()  # its result is in the stream: only the acknowledgement was lost
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
                if offer := await self._next():
                    await self._measure_one(offer)
                else:
                    await happens(self._changed, 1)
        finally:
            keeping.cancel()

    async def stop(self) -> None:
        """Cut the run short, if there is one, and hand back every tick that has not ended: another runner gets it at once.

        A result that is on its way to the stream has a moment to get there.
        """
        self._stopping = True
        if self._measuring:
            self._measuring.cancel()
            await asyncio.wait({self._measuring})
        elif self._ending:
            await asyncio.wait({self._ending}, timeout=LAST_WORDS_S)
        for offer in (*([self._current] if self._current else []), *self._waiting):
            await offer.hand_back()
        self._current, self._waiting = None, []

    def _known(self, run_id: UUID) -> Offer | None:
        offers = (self._current, *self._waiting) if self._current else self._waiting
        return next((offer for offer in offers if offer and offer.tick.run_id == run_id), None)

    async def _take(self, offer: Offer) -> None:
        # what any line may measure does not keep this one busy before it has it
        waiting = [each for each in self._waiting if not (each.is_anybodys or each.came_late)]
        others = waiting if self._current is None else [self._current, *waiting]
        if self._current is None:
            waiting = waiting[1:]  # one of them is next
        match "queue_all" if offer.is_anybodys or offer.came_late else offer.tick.overlap:
            case "skip" if others:
                return await self._skip(offer, f"the line was busy with the {_name(others[0].tick)}, and two tests at once each read low")
            case "queue_one" if waiting:
                return await self._skip(offer, f"the {_name(waiting[0].tick)} was waiting for the line already")
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
            if not await self._gets(offer):
                continue
            self._waiting.remove(offer)
            why = offer.too_late(f"no line of site {offer.tick.site} was free" if offer.is_anybodys else "the line was busy")
            await self._end(offer, not_run(offer.tick, self._runner, offer.attempt, Status.MISSED, why))

    async def _next(self) -> Offer | None:
        """Take out the tick that is measured next: the first one that is this line's, or that it gets."""
        order = sorted(self._waiting, key=lambda each: (each.tick.overlap != "cancel_other", -each.tick.priority, each.number))
        for offer in order:
            if await self._gets(offer):
                self._waiting.remove(offer)
                return offer
        return None

    async def _gets(self, offer: Offer) -> bool:
        """Return whether a tick that waits is this line's to end; one that is another line's is forgotten."""
        whose = await self._claims.take(offer) if offer.is_anybodys and not self._stopping else Whose.OURS
        if whose is Whose.ANOTHERS:
            await self._forget(offer)
        return whose is Whose.OURS and not self._stopping and offer in self._waiting

    async def _forget(self, offer: Offer) -> None:
        if offer in self._waiting:
            self._waiting.remove(offer)
            self._ended.add(offer.tick.run_id)
            log.info("run left to another line", extra={"run_id": offer.tick.run_id, "schedule": offer.tick.schedule})
            await offer.acknowledge()

    async def _measure_one(self, offer: Offer) -> None:
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
            result = ended.model_copy(update={"started_at": started_at})
        else:
            result = measuring.result()
        self._ending = asyncio.ensure_future(self._end(offer, result))
        await self._ending
        self._current = self._ending = None

    async def _end(self, offer: Offer, result: Result) -> None:
        """Publish a result and only then acknowledge its tick: a crash in between has it measured again, and stored once."""
        await self._publish([result])
        self._ended.add(offer.tick.run_id)
        await offer.acknowledge()

    async def _keep(self) -> None:
        """Tell the server again and again that these ticks are being looked after, and see which of them other lines have by now."""
        while True:
            await asyncio.sleep(REDELIVER_AFTER_S[0] / 3)
            for offer in (*([self._current] if self._current else []), *self._waiting):
                await offer.keep()
            await asyncio.gather(*(self._look(offer) for offer in self._waiting if offer.is_anybodys))

    async def _look(self, offer: Offer) -> None:
        if await self._claims.look(offer) is Whose.ANOTHERS:
            await self._forget(offer)


def _name(tick: Tick) -> str:
    return f"run of {tick.schedule}" if tick.schedule else "run that was asked for"
