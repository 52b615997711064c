"""A line of a given rate that all connections share."""

import threading
import time


class Pacer:
    """Lets so many bits a second pass; a rate of None lets everything pass."""

    def __init__(self, rate_bps: float | None) -> None:
        self.rate_bps = rate_bps
        self.passed_bytes = 0
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, size: int) -> None:
        """Wait until so many bytes have passed."""
        with self._lock:
            self.passed_bytes += size
            if self.rate_bps is None:
                return
            self._free_at = max(self._free_at, time.monotonic() - 0.01) + size * 8 / self.rate_bps
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)
