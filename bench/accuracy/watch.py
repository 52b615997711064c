"""Watching a run: what arrives while it lasts, how full the queues are, and what its processes cost."""

import os
import subprocess
from bisect import bisect_left
from dataclasses import dataclass, field
from statistics import median
from time import monotonic, sleep
from typing import Any

from bench.accuracy.lines import DEEP_S
from bench.accuracy.testbed import Bed, Count

DIRECTIONS = ("down", "up")
LOOK_EVERY_S = 0.05
LOOK_AT_QUEUES_EVERY = 5
"""Looks: four times a second, for each takes a process."""


class Overdue(Exception):
    """The run was not over in time and was killed."""


@dataclass
class Watched:
    """What was seen of a run; instants are of the monotonic clock."""

    counts: dict[str, list[Count]] = field(default_factory=lambda: {direction: [] for direction in DIRECTIONS})
    queued: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {direction: [] for direction in DIRECTIONS})
    exit_code: int = 0
    cpu_s: float = 0.0
    """Of the process and of all that it waited for."""
    wall_s: float = 0.0

    @property
    def wire_bytes(self) -> int:
        """Return all that arrived at both ends, headers included."""
        return sum(counts[-1].bytes - counts[0].bytes for counts in self.counts.values())

    def goodput_bps(self, direction: str, began: float, ended: float) -> float:
        """Return the payload that arrived between two instants, per second; between two looks it counts as even."""
        counts = self.counts[direction]
        return 8 * (_payload_at(counts, ended) - _payload_at(counts, began)) / (ended - began)

    def last_seconds(self, direction: str, seconds: float) -> tuple[float, float]:
        """Return the window of so many seconds that ends a moment before the direction's traffic does.

        The traffic ends where less than a thousandth of the direction's payload is still to come: somewhere between two
        looks, so that the window ends with the look before.
        """
        counts = self.counts[direction]
        first, last = counts[0].payload_bytes, counts[-1].payload_bytes
        ended = next(each.at for each in counts if each.payload_bytes >= last - (last - first) / 1000)
        ended -= 2 * LOOK_EVERY_S
        return ended - seconds, ended

    def queue_s(self, direction: str, began: float, ended: float) -> float | None:
        """Return the median delay of the queue in front of the line in a window, None where nobody looked."""
        seen = [queued for at, queued in self.queued[direction] if began <= at <= ended]
        return median(seen) if seen else None


def watch(testbed: Bed, process: "subprocess.Popen[Any]", deadline_s: float) -> Watched:
    """Watch a process that measures until it ends. Raises: Overdue."""
    watched = Watched()
    started = monotonic()
    looks = 0
    while True:
        for direction in DIRECTIONS:
            watched.counts[direction].append(testbed.count(direction))
            if testbed.line.queue_s == DEEP_S and looks % LOOK_AT_QUEUES_EVERY == 0:
                watched.queued[direction].append((monotonic(), testbed.queued_s(direction)))
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        watched.wall_s = monotonic() - started
        if pid:
            process.returncode = watched.exit_code = os.waitstatus_to_exitcode(status)
            watched.cpu_s = used.ru_utime + used.ru_stime
            return watched
        if watched.wall_s > deadline_s:
            process.kill()
            process.wait()
            raise Overdue(f"not over after {deadline_s:g} s")
        looks += 1
        sleep(LOOK_EVERY_S)


def _payload_at(counts: list[Count], at: float) -> float:
    """Return the payload that had arrived at an instant."""
    after = min(max(bisect_left(counts, at, key=lambda each: each.at), 1), len(counts) - 1)
    before, behind = counts[after - 1], counts[after]
    share = min(max((at - before.at) / (behind.at - before.at), 0), 1)
    return before.payload_bytes + share * (behind.payload_bytes - before.payload_bytes)
