"""A loop over sockets: steps that yield what they wait for, and go on when it is there.

asyncio would do; but for the hot path, a read per wake-up, its transports cost twice the CPU time.
"""

import heapq
import selectors
import socket as sockets
import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from services.runner.confined import Failed

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@dataclass(eq=False, slots=True)
class Wait:
    """What a task waits for: events on a socket until a moment, or without a socket that moment itself.

    The same one may be yielded again; with its moment moved on, the wait costs nothing.
    """

    until: float
    socket: sockets.socket | None = None
    events: int = 0
    queued: "Task | None" = None
    """The task for which its moment is watched: another task that yields it is woken by its own."""
    queued_until: float = 0
    """The moment that is watched for that task; `until` may have moved on since."""


T = TypeVar("T")
Steps = Generator[Wait, bool, T]
"""What a connection does; sent in is whether what it waited for came in time."""


class Task:
    """Steps on their way; `problem` says why they failed."""

    def __init__(self, steps: Steps[Any]) -> None:
        self.steps = steps
        self.wait: Wait | None = None
        self.done = False
        self.result: Any = None
        self.problem: Failed | None = None


class Loop:
    """Runs tasks until a moment; a task that fails stops, and the others go on."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Task, Wait]] = []
        self._numbers = count()

    def start(self, steps: Steps[Any]) -> Task:
        """Begin with steps, up to what they wait for first."""
        task = Task(steps)
        self._advance(task, came=True)
        return task

    def stop(self, task: Task) -> None:
        """End a task where it stands; it closes what it holds."""
        self._forget(task)
        task.done = True
        task.steps.close()

    def finish(self, steps: Steps[T]) -> T:
        """Run everything until these steps are through, and return what they return.

        Raises: Failed as they do.
        """
        task = self.start(steps)
        while not task.done:
            self._once(time.monotonic() + 1)
        if task.problem:
            raise task.problem
        result: T = task.result
        return result

    def run(self, until: float) -> None:
        """Run everything until a moment of the monotonic clock."""
        while time.monotonic() < until:
            self._once(until)

    def _once(self, until: float) -> None:
        first = min(until, self._timers[0][0]) if self._timers else until
        for key, _ in self._selector.select(max(0.0, first - time.monotonic())):
            self._advance(key.data, came=True)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            moment, _, task, wait = heapq.heappop(self._timers)
            if wait.queued is task:
                if wait.queued_until != moment:  # an earlier moment took the place of this one
                    continue
                wait.queued = None
            if task.wait is not wait:  # it has gone on since
                continue
            if wait.until <= now:
                self._advance(task, came=wait.socket is None)
            else:
                self._queue(task, wait)

    def _advance(self, task: Task, *, came: bool) -> None:
        before = task.wait
        try:
            # the first step of a generator takes nothing
            wait = next(task.steps) if before is None else task.steps.send(came)
        except StopIteration as stop:
            task.result = stop.value
            wait = None
        except Failed as problem:
            task.problem, wait = problem, None
        if wait is None:
            task.done = True
            self._forget(task)
            return
        self._watch(task, before, wait)

    def _watch(self, task: Task, before: Wait | None, wait: Wait) -> None:
        if before is not wait:
            task.wait = wait
            if before is None or (before.socket, before.events) != (wait.socket, wait.events):
                self._unregister(before)
                if wait.socket is not None:
                    self._selector.register(wait.socket, wait.events, task)
        if wait.queued is not task or wait.until < wait.queued_until:
            self._queue(task, wait)

    def _queue(self, task: Task, wait: Wait) -> None:
        wait.queued, wait.queued_until = task, wait.until
        heapq.heappush(self._timers, (wait.until, next(self._numbers), task, wait))

    def _forget(self, task: Task) -> None:
        self._unregister(task.wait)
        task.wait = None

    def _unregister(self, wait: Wait | None) -> None:
        if wait is not None and wait.socket is not None:
            self._selector.unregister(wait.socket)  # which finds it even when it is closed by now
