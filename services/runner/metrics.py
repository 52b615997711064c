"""The runner's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """What Prometheus sees of a runner. Labels are its own site, the engines it has (`unknown` for any other) and the status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = Gauge("refresher_runs_in_flight", "Runs being measured now.", ["engine", "site"], registry=registry)
        self.finished = Counter(
            "refresher_runs_total", "Runs finished, by engine, site and status.", ["engine", "site", "status"], registry=registry
        )
        self.duration = Histogram(
            "refresher_run_duration_seconds",
            "From the start of a measurement to its end.",
            ["engine"],
            buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
            registry=registry,
        )
        self.waited = Histogram(
            "refresher_run_wait_seconds",
            "From the due instant to the start of the measurement.",
            buckets=(0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 900, 3600),
            registry=registry,
        )
        self.redeliveries = Counter("refresher_ticks_redelivered_total", "Ticks that had been delivered before.", registry=registry)
        self.dead = Counter("refresher_ticks_dead_total", "Ticks that could not be read and were put aside.", registry=registry)
