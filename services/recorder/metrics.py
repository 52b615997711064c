"""The recorder's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """What Prometheus sees of a recorder."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.results = Counter(
            "refresher_results_total",
            "Results taken from the stream, by outcome (stored, duplicate, dead).",
            ["outcome"],
            registry=registry,
        )
        self.batch = Histogram(
            "refresher_recorder_batch_size",
            "Results per transaction.",
            buckets=(1, 2, 5, 10, 50, 100, 500, 1_000, 10_000),
            registry=registry,
        )
        self.commit = Histogram(
            "refresher_recorder_commit_seconds",
            "From the start of a transaction to its commit.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
            registry=registry,
        )
        self.redeliveries = Counter("refresher_results_redelivered_total", "Results that had been delivered before.", registry=registry)
        self.waiting = Gauge("refresher_recorder_postgres_away", "1 while the recorder waits for Postgres.", registry=registry)
        self.pending = Gauge(
            "refresher_consumer_pending", "Messages not yet delivered, by stream and consumer.", ["stream", "consumer"], registry=registry
        )
        self.unacknowledged = Gauge(
            "refresher_consumer_unacknowledged",
            "Messages delivered and not acknowledged, by stream and consumer.",
            ["stream", "consumer"],
            registry=registry,
        )
        self.stored = Gauge("refresher_stream_messages", "Messages in a stream.", ["stream"], registry=registry)
        self.abandoned = Counter(
            "refresher_ticks_abandoned_total", "Ticks that no runner finished, however often delivered.", registry=registry
        )
        self.settled = Counter(
            "refresher_runs_settled_total",
            "Runs that nobody started, recorded as missed, by reason (no_runner, runner_offline, expired, scheduler_down, changed, lost).",
            ["reason"],
            registry=registry,
        )
        for reason in ("no_runner", "runner_offline", "expired", "scheduler_down", "changed", "lost"):
            self.settled.labels(reason)  # there from the start, so that the first one counts as an increase
        self.is_month_ahead = Gauge(
            "refresher_results_month_ahead", "1 once the partition of the next month was there before its first row.", registry=registry
        )
        self.months_dropped = Counter(
            "refresher_results_months_dropped_total", "Months of results that were older than what is kept.", registry=registry
        )
        self.open = Gauge("refresher_ledger_open", "Runs that were due and have no row so far.", registry=registry)
        self.audited = {
            kind: Gauge(f"refresher_ledger_{kind}", f"{text}, of the last day, at the last audit.", registry=registry)
            for kind, text in (
                ("missing", "Runs that were due and have no row"),
                ("duplicated", "Rows beside another one of the same run"),
                ("unexpected", "Rows of runs that nobody asked for"),
            )
        }
