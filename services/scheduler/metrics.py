"""The scheduler's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATE_S = 1.0
"""From this lateness on a tick counts as late."""


class Metrics:
    """What Prometheus sees of a scheduler. No label carries a schedule's or a site's name: their number is not bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ticks = Counter(
            "refresher_ticks_total",
            "Ticks published, by trigger (schedule, catch_up) and outcome (new, already_there).",
            ["trigger", "outcome"],
            registry=registry,
        )
        self.late = Counter("refresher_ticks_late_total", f"Ticks published {LATE_S} s or more after they were due.", registry=registry)
        self.lateness = Histogram(
            "refresher_tick_lateness_seconds",
            "From the due instant to the server's acknowledgement.",
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 300, 3600),
            registry=registry,
        )
        self.abandoned = Counter(
            "refresher_ticks_abandoned_total", "Ticks that no runner at this leaf finished, however often delivered.", registry=registry
        )
        self.schedules = Gauge("refresher_schedules", "Schedules, by state (enabled, paused, invalid).", ["state"], registry=registry)
