"""A tick that was handed to a runner."""

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from uuid import UUID

from nats.aio.msg import Msg

from shared.connect import NATS_AWAY
from shared.events import ANY, Failure, Tick

log = logging.getLogger(__name__)

REMEMBERED = 1_000

_numbers = count()


@dataclass(eq=False)
class Offer:
    """A tick that was handed to this runner, and the message to acknowledge."""

    tick: Tick
    message: Msg
    number: int = field(default_factory=lambda: next(_numbers))
    since: float = field(default_factory=time.monotonic)
    """When it was handed to this runner first."""
    ended_by: Tick | None = None
    """The tick for which its run is cut short."""
    is_wished_for: bool = False
    """The other lines of the site were told that this one waits to measure it."""
    came_late: bool = field(init=False)
    """It was too late to start when it came here: it waits for nothing, and nothing waits for it."""

    def __post_init__(self) -> None:
        self.came_late = datetime.now(UTC) >= self.tick.expires_at

    @property
    def attempt(self) -> int:
        """How often the tick has been delivered."""
        return self.message.metadata.num_delivered or 1

    @property
    def is_anybodys(self) -> bool:
        """Whether every line of the site was handed it, and one of them is to measure it."""
        return self.tick.line == ANY

    def too_late(self, why: str) -> Failure:
        """Return why its run was not started in time; `why` is that of one that came in time."""
        until = f"{self.tick.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        if not self.came_late:
            return Failure(kind="expired", message=f"{why} until it was too late to start, {until}")
        if self.attempt > 1:
            look = "see in its log why it ended"
            return Failure(kind="lost", message=f"a runner had it and left no result, and the next one came after {until}: {look}")
        look = "see that one is there, and reaches NATS (refresher runners)"
        return Failure(kind="runner_offline", message=f"it came to a runner only after {until}, when it was too late to start: {look}")

    async def keep(self) -> None:
        """Tell the server that the tick is being looked after."""
        try:
            await self.message.in_progress()
        except NATS_AWAY as error:
            log.warning("could not say that the run goes on", extra={"error": str(error) or type(error).__name__})

    async def acknowledge(self) -> None:
        """Tell the server that the tick has ended, once its result is in the stream.

        Without waiting for an answer: should it be lost, the tick comes again and is acknowledged then.
        """
        try:
            await self.message.ack()
        except NATS_AWAY as error:
            log.warning("tick not acknowledged", extra={"error": str(error) or type(error).__name__})

    async def hand_back(self) -> None:
        """Give the tick back before it has ended: another runner gets it at once."""
        log.info("run handed back", extra={"run_id": self.tick.run_id})
        await self.message.nak()


class Ended:
    """The runs that ended here last: a tick of one of them that comes again has only lost its acknowledgement."""

    def __init__(self) -> None:
        self._runs: OrderedDict[UUID, None] = OrderedDict()

    def add(self, run_id: UUID) -> None:
        """Remember a run whose result is in the stream, and forget the oldest of too many."""
        self._runs[run_id] = None
        if len(self._runs) > REMEMBERED:
            self._runs.popitem(last=False)

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._runs
