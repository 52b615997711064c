"""What a scheduler did: when each schedule was due, and when that was where a worker could take it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fire:
    """One schedule that fired once; times in seconds since 1970, by the clock of this machine."""

    schedule: str
    due_at: float
    at: float


@dataclass(frozen=True)
class Burst:
    """What became of schedules that were all due at once: how many fired, and how long it took until the last of these had."""

    fired: int
    took_s: float

    @property
    def rate(self) -> float:
        """Fires a second."""
        return self.fired / self.took_s


@dataclass(frozen=True)
class Minute:
    """What became of schedules that were due in a minute, one after another; CPU is a share of one core."""

    wanted: int
    fires: Sequence[Fire]
    cpu: float
    memory_bytes: int

    def late_ms(self, share: float) -> float:
        """Return the lateness in ms that this share of what fired did not exceed."""
        late = sorted((fire.at - fire.due_at) * 1e3 for fire in self.fires)
        return late[min(int(len(late) * share), len(late) - 1)]


@dataclass(frozen=True)
class Measured:
    """One side with so many schedules.

    `first_after_s` is the time from the start of the process to the first fire of what was overdue then; `loaded_s` what the scheduler
    itself says that reading them took, where it says so.
    """

    side: str
    first_after_s: float
    burst: Burst
    minute: Minute
    loaded_s: float | None = None


def within(fires: Sequence[Fire], since: float, until: float) -> list[Fire]:
    """Return the first fire of each schedule and instant that was due in a period."""
    found: dict[tuple[str, float], Fire] = {}
    for fire in fires:
        if since <= fire.due_at < until:
            found.setdefault((fire.schedule, fire.due_at), fire)
    return list(found.values())
