"""The live feed inside of this process: what passes on the bus, handed to every client that listens."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from services.api.problems import RETRY_AFTER_S, ProblemError
from shared import subjects
from shared.events import Progress, Result, Tick
from shared.waiting import happens

log = logging.getLogger(__name__)

CLIENTS = 100
WAITING = 256
"""How many events wait for a slow client; with more, the oldest are dropped and it is told how many."""
TICKS = 10_000
"""So many ticks are known again: each replica of the scheduler publishes all of them, and one of each is stored."""

_KINDS: dict[str, type[Tick] | type[Progress] | type[Result]] = {"tick": Tick, "progress": Progress, "result": Result}
"""What is shown, by the second word of its subject."""


@dataclass(frozen=True)
class Happened:
    """Something that happened, as it goes to clients."""

    kind: str
    """`tick`, `progress` or `result`."""
    site: str
    run_id: UUID
    data: bytes
    """The event as JSON, on one line."""


class Listener:
    """What waits for one client."""

    def __init__(self, site: str | None, run_id: UUID | None) -> None:
        self._site, self._run_id = site, run_id
        self._waiting: deque[Happened] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, event: Happened) -> None:
        """Add an event if it is of interest; never waits, drops the oldest when there are too many."""
        if self._site not in {None, event.site} or self._run_id not in {None, event.run_id}:
            return
        if len(self._waiting) == WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(event)
        self._wake.set()

    def close(self) -> None:
        """End the iteration of `take` once everything is taken."""
        self._closed = True
        self._wake.set()

    async def take(self, within_s: float) -> tuple[int, list[Happened]] | None:
        """Wait for events and return how many were dropped and those that are left.

        Nothing (0, []) after `within_s` without one; None when the service stops.
        """
        await happens(self._wake, within_s)
        taken = self._dropped, list(self._waiting)
        if not self._waiting and self._closed:
            return None
        self._dropped = 0
        self._waiting.clear()
        if not self._closed:
            self._wake.clear()
        return taken


class Feed:
    """Hands every event to every listener."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._ticks: dict[UUID, None] = {}
        self._closed = False

    def __len__(self) -> int:
        """Return the number of listeners."""
        return len(self._listeners)

    @contextlib.contextmanager
    def listening(self, *, site: str | None = None, run_id: UUID | None = None) -> Iterator[Listener]:
        """Listen to the events of a site, of a run, or to all.

        Raises: ProblemError 503 when there are too many clients.
        """
        if len(self._listeners) >= CLIENTS:
            detail = f"{CLIENTS} clients listen already, and that is all this API serves."
            raise ProblemError(503, detail, headers={"Retry-After": str(RETRY_AFTER_S)})
        listener = Listener(site, run_id)
        self._listeners.add(listener)
        if self._closed:
            listener.close()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def publish(self, event: Happened) -> None:
        """Hand an event to all listeners, a tick once."""
        if event.kind == "tick":
            if event.run_id in self._ticks:
                return
            if len(self._ticks) == TICKS:
                del self._ticks[next(iter(self._ticks))]
            self._ticks[event.run_id] = None
        for listener in self._listeners:
            listener.offer(event)

    async def close_after(self, stopping: asyncio.Event) -> None:
        """End every stream once the service stops: it would otherwise wait for clients that never leave."""
        await stopping.wait()
        self._closed = True
        for listener in self._listeners:
            listener.close()

    async def follow(self, client: Client) -> None:
        """Subscribe to ticks, progress and results as they pass (core NATS, nothing is acknowledged).

        One subscription for all of them: they arrive in the order in which they happened, which several would not keep. It is
        nats-py's own: a subscriber of FastStream takes 0.5 ms of CPU to open each of them, also while nobody listens.
        """
        await client.subscribe(subjects.EVERYTHING, cb=self._passed)

    async def _passed(self, message: Msg) -> None:
        kind = message.subject.split(".", 2)[1]
        if kind not in _KINDS or not self._listeners:
            return
        try:
            event = _KINDS[kind].model_validate_json(message.data)
        except ValidationError as error:
            log.debug("event not understood", extra={"subject": kind, "error": str(error)})
            return
        self.publish(Happened(kind, event.site, event.run_id, event.to_json()))
