"""The dashboard *Pipeline*: how the four services are doing, from Prometheus.

What happens once per run is measured over a window that the viewer chooses: a system that tests once an hour has nothing to
show for the last minute.
"""

from grafana_foundation_sdk.builders.dashboard import Dashboard, IntervalVariable
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.dashboard import VariableOption

from grafana.parts import graph, new, number, promql, row

SERVICE = "* on (job, instance) group_left (service) refresher_build_info"
"""Puts the service's name on its process's metrics, whatever its scrape job is called."""


def dashboard() -> Dashboard:
    """Return the dashboard."""
    built = new(
        "refresher-pipeline",
        "Pipeline",
        "From the tick to the row: scheduler, runner, recorder and API.",
        since="now-6h",
        refresh="30s",
    ).with_variable(
        IntervalVariable("window")
        .label("Window")
        .description("How long the window is over which rates and percentiles of runs are taken.")
        .values("5m,15m,1h,6h,1d")
        .current(VariableOption(text="1h", value="1h"))
    )
    for section in (_now, _runs, _ledger, _queues, _recorder, _api, _processes):
        built = section(built)
    return built


def _now(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("Now"))
        .with_panel(number("Schedules", "Schedules by state.", "short", promql("max by (state) (refresher_schedules)", "{{state}}"), 6))
        .with_panel(
            number("Runs in flight", "Tests being measured now, at all sites.", "short", promql("sum(refresher_runs_in_flight)", "runs"))
        )
        .with_panel(
            number(
                "Results waiting",
                "Results that no recorder has taken yet.",
                "short",
                promql('max(refresher_consumer_pending{stream="RESULTS"})', "results"),
            )
        )
        .with_panel(
            number(
                "Dead letters",
                "Messages that could not be used, of the last 30 days. They lie in the stream DEAD, each with its reason.",
                "short",
                promql('max(refresher_stream_messages{stream="DEAD"})', "messages"),
            )
        )
        .with_panel(
            number(
                "Replicas",
                "Processes that answered the last scrape, by service.",
                "short",
                promql("count by (service) (refresher_build_info)", "{{service}}"),
                6,
            )
        )
    )


def _runs(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("Ticks and runs"))
        .with_panel(
            graph(
                "Ticks",
                "Ticks per second. already_there: another replica was first; that is how it should be.",
                "cps",
                promql("sum by (trigger, outcome) (rate(refresher_ticks_total[$window]))", "{{trigger}}, {{outcome}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Runs finished",
                "Runs per second by how they ended, as the runners count them.",
                "cps",
                promql("sum by (status) (rate(refresher_runs_total[$window]))", "{{status}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Results recorded",
                "Results per second, by outcome: stored, duplicate (delivered twice, kept once), dead (put aside).",
                "cps",
                promql("sum by (outcome) (rate(refresher_results_total[$window]))", "{{outcome}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Scheduler lateness",
                "From the instant on the schedule until NATS had stored the tick.",
                "s",
                *_percentiles("refresher_tick_lateness_seconds"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Wait for the line",
                "From the instant on the schedule to the start of the measurement: a site runs one test at a time.",
                "s",
                *_percentiles("refresher_run_wait_seconds"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Duration of a run",
                "From the start of a measurement to its end, by engine.",
                "s",
                *_percentiles("refresher_run_duration_seconds", "engine"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Runs in flight",
                "Tests being measured, by site and engine. Never more than one per site.",
                "short",
                promql("sum by (site, engine) (refresher_runs_in_flight)", "{{site}} {{engine}}"),
            )
        )
        .with_panel(
            graph(
                "Late and repeated",
                "Ticks published a second or more late; ticks and results delivered again; ticks that no runner finished. Per window.",
                "short",
                promql("sum(increase(refresher_ticks_late_total[$window]))", "late ticks", "A"),
                promql("sum(increase(refresher_ticks_redelivered_total[$window]))", "ticks delivered again", "B"),
                promql("sum(increase(refresher_results_redelivered_total[$window]))", "results delivered again", "C"),
                promql("sum(increase(refresher_ticks_abandoned_total[$window]))", "ticks abandoned", "D"),
            )
        )
    )


def _ledger(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("Ledger"))
        .with_panel(
            graph(
                "Audit",
                "Runs of the last day that break the promise of one row for each instant. All three are 0: `refresher audit` lists them.",
                "short",
                promql("max(refresher_ledger_missing)", "missing", "A"),
                promql("max(refresher_ledger_duplicated)", "duplicated", "B"),
                promql("max(refresher_ledger_unexpected)", "unexpected", "C"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Runs missed",
                "Runs that nobody started, by reason, as the recorders settled them. Per window.",
                "short",
                promql("sum by (reason) (increase(refresher_runs_settled_total[$window]))", "{{reason}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Open runs",
                "Runs that were due and have no row so far: being measured, waiting for their line, or for a scheduler.",
                "short",
                promql("max(refresher_ledger_open)", "runs"),
                width=8,
            )
        )
    )


def _queues(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("Queues"))
        .with_panel(
            graph(
                "Queue depth",
                "Messages that a consumer has not been given yet. A runner's own queue is its ticks.",
                "short",
                promql("max by (stream, consumer) (refresher_consumer_pending)", "{{stream}} {{consumer}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Unacknowledged",
                "Messages that a consumer was given and has not acknowledged: being measured, or being written.",
                "short",
                promql("max by (stream, consumer) (refresher_consumer_unacknowledged)", "{{stream}} {{consumer}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Dead letters",
                "Messages in the stream DEAD, and ticks that runners put aside there per window.",
                "short",
                promql('max(refresher_stream_messages{stream="DEAD"})', "in the stream", "A"),
                promql("sum(increase(refresher_ticks_dead_total[$window]))", "ticks put aside", "B"),
                width=8,
            )
        )
    )


def _recorder(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("Recorder"))
        .with_panel(
            graph(
                "Batch size",
                "Results per transaction. It grows by itself when there is more to do.",
                "short",
                *_percentiles("refresher_recorder_batch_size"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Commit time",
                "From the start of a transaction to its commit.",
                "s",
                *_percentiles("refresher_recorder_commit_seconds"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Waiting for Postgres",
                "Recorders that wait for Postgres. Results are safe in their stream meanwhile.",
                "short",
                promql("sum(refresher_recorder_postgres_away)", "recorders"),
                width=8,
            )
        )
    )


def _api(built: Dashboard) -> Dashboard:
    every = "sum by (route) (rate(refresher_api_requests_total[$__rate_interval]))"
    failed = 'sum by (route) (rate(refresher_api_requests_total{status="5xx"}[$__rate_interval]))'
    buckets = "sum by (route, le) (rate(refresher_api_request_seconds_bucket[$__rate_interval]))"
    return (
        built.with_row(row("API"))
        .with_panel(graph("Requests", "Requests per second, by route.", "reqps", promql(every, "{{route}}"), stacked=True))
        .with_panel(
            graph(
                "Errors",
                "Share of the requests that the API itself failed (5xx), by route. A route without requests has no share.",
                "percentunit",
                promql(f"({failed} or 0 * {every}) / {every}", "{{route}}"),
            )
        )
        .with_panel(
            graph(
                "Duration",
                "Until the answer began, by route: half of the requests took less than p50, 99 % less than p99.",
                "s",
                promql(f"histogram_quantile(0.5, {buckets})", "p50 {{route}}", "A"),
                promql(f"histogram_quantile(0.99, {buckets})", "p99 {{route}}", "B"),
            )
        )
        .with_panel(
            graph(
                "Live clients", "Browsers and programs that follow events.", "short", promql("sum(refresher_api_live_clients)", "clients")
            )
        )
    )


def _processes(built: Dashboard) -> Dashboard:
    lag = f"sum by (service, le) (rate(refresher_loop_lag_seconds_bucket[$__rate_interval]) {SERVICE})"
    return (
        built.with_row(row("Processes"))
        .with_panel(
            graph(
                "Loop lag",
                "How late the event loop woke, p99. More than a tenth of a second: something blocks it.",
                "s",
                promql(f"histogram_quantile(0.99, {lag})", "{{service}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Resident memory of each process.",
                "bytes",
                promql(f"process_resident_memory_bytes {SERVICE}", "{{service}} {{instance}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "CPU",
                "Share of one core that each process takes.",
                "percentunit",
                promql(f"rate(process_cpu_seconds_total[$__rate_interval]) {SERVICE}", "{{service}} {{instance}}"),
                width=8,
            )
        )
    )


def _percentiles(histogram: str, by: str = "") -> tuple[Builder[Dataquery], Builder[Dataquery]]:
    labels = f"{by}, le" if by else "le"
    name = f" {{{{{by}}}}}" if by else ""
    buckets = f"sum by ({labels}) (rate({histogram}_bucket[$window]))"
    return (
        promql(f"histogram_quantile(0.5, {buckets})", f"p50{name}", "A"),
        promql(f"histogram_quantile(0.99, {buckets})", f"p99{name}", "B"),
    )
