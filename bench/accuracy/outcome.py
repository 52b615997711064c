"""What came of one run: what the engine said, what was counted, and what it cost."""

from dataclasses import dataclass, field

from bench.accuracy.watch import Watched


@dataclass
class Figures:
    """One direction of a run; what is not known is None."""

    measured_bps: float | None = None
    """The engine's own figure."""
    counted_bps: float | None = None
    """The payload that arrived at the interface in the seconds that the engine measured in, where it tells which."""
    queue_s: float | None = None
    """The delay of the queue in front of the line, meanwhile: the median of a few looks a second."""
    loaded_latency_s: float | None = None
    """The round-trip time under load that the engine says it saw."""
    streams: int | None = None
    """How many connections carried it."""
    cpu_share: float | None = None
    """How much of a core the engine took for it, where it tells."""

    @property
    def cpu_s_per_gb(self) -> float | None:
        """Return the processor time for 10^9 bytes of payload."""
        return self.cpu_share * 8e9 / self.measured_bps if self.cpu_share is not None and self.measured_bps else None


@dataclass
class Outcome:
    """A run of an engine."""

    figures: dict[str, Figures] = field(default_factory=dict)
    """By direction."""
    latency_s: float | None = None
    loss: float | None = None
    limit: str | None = None
    """What the engine says that the rates were limited by, where it says so."""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    wire_bytes: int = 0
    """All that arrived at both ends, headers included."""
    failure: str | None = None

    def cost(self, watched: Watched) -> None:
        """Add what a process took."""
        self.cpu_s += watched.cpu_s
        self.wall_s += watched.wall_s
        self.wire_bytes += watched.wire_bytes
