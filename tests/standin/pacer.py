"""A line of a given rate that all connections share, and the account of what went over it."""

import threading
import time
from bisect import bisect_right
from collections.abc import Mapping


class Passed:
    """What went over a line, and when: on a busy machine that is less than its rate would let through."""

    def __init__(self) -> None:
        self.passed_bytes = 0
        self._moments, self._totals = [0.0], [0]

    def add(self, size: int, in_s: float = 0) -> None:
        """Count bytes that have passed, or will have after so many seconds."""
        self.passed_bytes += size
        self._moments.append(time.time() + in_s)
        self._totals.append(self.passed_bytes)

    def bps(self, window: Mapping[str, float]) -> float:
        """Return the rate in the seconds in which an engine says that it measured: from `began_at` to `ended_at`."""
        since, until = (self._totals[bisect_right(self._moments, window[name]) - 1] for name in ("began_at", "ended_at"))
        return (until - since) * 8 / (window["ended_at"] - window["began_at"])

    def mean_bps(self) -> float:
        """Return the rate from the first bytes to the last."""
        return self.passed_bytes * 8 / (self._moments[-1] - self._moments[1])


class Pacer(Passed):
    """Lets so many bits a second pass; a rate of None lets everything pass."""

    def __init__(self, rate_bps: float | None) -> None:
        super().__init__()
        self.rate_bps = rate_bps
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, size: int) -> None:
        """Wait until so many bytes have passed."""
        with self._lock:
            wait = 0.0
            if self.rate_bps is not None:
                now = time.monotonic()
                self._free_at = max(self._free_at, now - 0.01) + size * 8 / self.rate_bps
                wait = max(0.0, self._free_at - now)
            self.add(size, wait)
        if wait:
            time.sleep(wait)
