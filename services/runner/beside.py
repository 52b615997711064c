"""Runs that do not use the line: each begins as it comes, beside the others and beside whatever is measured on the line.

They wait for no turn and hold no lease, so overlap policy and priority mean nothing to them.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from services.runner.line import LAST_WORDS_S, Measure, Publish
from services.runner.offer import Ended, Offer
from shared.events import Result
from shared.provision import REDELIVER_AFTER_S
from shared.waiting import happens

AT_ONCE = 100
"""So many are measured at the same time: an engine may need a process for each."""


class Beside:
    """Takes ticks with `offer`, measures them side by side, and publishes together what has ended meanwhile.

    `measure` and `publish` are as for a line. The server hands out no more than `WAITING_AT_MOST` ticks before one has ended.
    """

    def __init__(self, tasks: asyncio.TaskGroup, measure: Measure, publish: Publish) -> None:
        self._tasks, self._measure, self._publish = tasks, measure, publish
        self._runs: dict[UUID, tuple[Offer, asyncio.Task[None]]] = {}
        self._measured: list[tuple[Offer, Result]] = []
        self._changed, self._all_published = asyncio.Event(), asyncio.Event()
        self._all_published.set()
        self._ended = Ended()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._working = {tasks.create_task(self._end()), tasks.create_task(self._keep())}

    async def offer(self, offers: Sequence[Offer]) -> None:
        """Begin what ticks ask for."""
        for offer in offers:
            run_id = offer.tick.run_id
            if run_id in self._ended:
                await offer.acknowledge()  # its result is in the stream: only the acknowledgement was lost
            elif known := self._runs.get(run_id):
                known[0].message = offer.message
            else:
                self._runs[run_id] = offer, self._tasks.create_task(self._run(offer))

    async def stop(self) -> None:
        """Cut every run short and hand back each tick that has not ended: another runner gets it at once.

        Results that are on their way to the stream have a moment to get there.
        """
        await _cancelled({task for _, task in self._runs.values()})
        await happens(self._all_published, LAST_WORDS_S)
        await _cancelled(self._working)
        for offer, _ in self._runs.values():
            await offer.hand_back()
        self._runs.clear()

    async def _run(self, offer: Offer) -> None:
        async with self._turns:
            result = await self._measure(offer)
        self._measured.append((offer, result))
        self._all_published.clear()
        self._changed.set()

    async def _end(self) -> None:
        """Publish results and only then acknowledge their ticks, for ever: a crash in between has them measured again, and stored once."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            measured, self._measured = self._measured, []
            await self._publish([result for _, result in measured])
            for offer, _ in measured:
                self._ended.add(offer.tick.run_id)
                del self._runs[offer.tick.run_id]
                await offer.acknowledge()
            if not self._measured:
                self._all_published.set()

    async def _keep(self) -> None:
        """Tell the server again and again that these ticks are being looked after."""
        while True:
            await asyncio.sleep(REDELIVER_AFTER_S[0] / 3)
            for offer in [offer for offer, _ in self._runs.values()]:
                await offer.keep()


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
