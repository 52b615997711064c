"""The dashboard *Infrastructure*: what the services stand on, from the exporters of the host, the containers, NATS and Postgres."""

from grafana_foundation_sdk.builders import statetimeline
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models.common import VisibilityMode
from grafana_foundation_sdk.models.dashboard import ValueMap, ValueMappingResult

from grafana.parts import PROMETHEUS, fixed, graph, legend, new, promql, row, titled

DISKS = 'fstype!~"tmpfs|ramfs|overlay|squashfs|iso9660|nsfs"'
CONTAINERS = 'name!=""'
"""cAdvisor also reports every cgroup that is no container; those have no name."""

DATABASE = 'datname="refresher"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    built = new(
        "refresher-infrastructure",
        "Infrastructure",
        "The host, the containers, NATS and Postgres.",
        since="now-6h",
        refresh="30s",
    )
    for section in (_targets, _host, _containers, _nats, _postgres):
        built = section(built)
    return built


def _targets(built: Dashboard) -> Dashboard:
    answers = {"0": ValueMappingResult(text="down", color="red", index=0), "1": ValueMappingResult(text="up", color="green", index=1)}
    panel = (
        titled(statetimeline.Panel(), "Targets", "Whether Prometheus could read what it scrapes; down if one of several is.", "bool_on_off")
        .datasource(PROMETHEUS)
        .span(24)
        .height(9)
        .show_value(VisibilityMode.NEVER)
        .color_scheme(fixed("text"))
        .mappings([ValueMap(options=answers)])
        .legend(legend())
        .with_target(promql("min by (job) (up)", "{{job}}"))
    )
    return built.with_row(row("Targets")).with_panel(panel)


def _host(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("Host"))
        .with_panel(
            graph(
                "CPU",
                "Share of all cores that is busy.",
                "percentunit",
                promql('1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))', "{{instance}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Share of the memory that programs hold; what only caches files is not in it.",
                "percentunit",
                promql("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "{{instance}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Disk space",
                "Share of each file system that is used.",
                "percentunit",
                promql(
                    f"1 - node_filesystem_avail_bytes{{{DISKS}}} / node_filesystem_size_bytes{{{DISKS}}}", "{{instance}} {{mountpoint}}"
                ),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Load",
                "Programs that run or wait to, per core: above 1 they wait.",
                "short",
                promql(
                    'node_load1 / on (instance) count by (instance) (node_cpu_seconds_total{mode="idle"})',
                    "{{instance}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Disk time",
                "Share of the time in which a disk had something to do.",
                "percentunit",
                promql("rate(node_disk_io_time_seconds_total[$__rate_interval])", "{{instance}} {{device}}"),
            )
        )
    )


def _containers(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("Containers"))
        .with_panel(
            graph(
                "CPU",
                "Share of one core that each container takes.",
                "percentunit",
                promql(f"sum by (name) (rate(container_cpu_usage_seconds_total{{{CONTAINERS}}}[$__rate_interval]))", "{{name}}"),
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Memory that each container holds and could not give back.",
                "bytes",
                promql(f"sum by (name) (container_memory_working_set_bytes{{{CONTAINERS}}})", "{{name}}"),
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Memory, of its limit",
                "Share of its memory limit that each container holds; at 100 % the kernel ends it. One without a limit is not here.",
                "percentunit",
                promql(
                    f"sum by (name) (container_memory_working_set_bytes{{{CONTAINERS}}}) / "
                    f"sum by (name) (container_spec_memory_limit_bytes{{{CONTAINERS}}} > 0)",
                    "{{name}}",
                ),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Network",
                "What each container receives and sends.",
                "bps",
                promql(
                    f"sum by (name) (rate(container_network_receive_bytes_total{{{CONTAINERS}}}[$__rate_interval])) * 8", "in {{name}}", "A"
                ),
                promql(
                    f"sum by (name) (rate(container_network_transmit_bytes_total{{{CONTAINERS}}}[$__rate_interval])) * 8",
                    "out {{name}}",
                    "B",
                ),
            )
        )
        .with_panel(
            graph(
                "Time since start",
                "How long each container has been running: a line that falls to 0 is a restart.",
                "s",
                promql(f"time() - max by (name) (container_start_time_seconds{{{CONTAINERS}}})", "{{name}}"),
            )
        )
    )


def _nats(built: Dashboard) -> Dashboard:
    return (
        built.with_row(row("NATS"))
        .with_panel(
            graph(
                "Connections",
                "Clients, and those that NATS cut off because they read too slowly.",
                "short",
                promql("gnatsd_varz_connections", "connections {{server_id}}", "A"),
                promql("gnatsd_varz_slow_consumers", "too slow {{server_id}}", "B"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Messages",
                "Messages per second through each server.",
                "cps",
                promql("rate(gnatsd_varz_in_msgs[$__rate_interval])", "in {{server_id}}", "A"),
                promql("rate(gnatsd_varz_out_msgs[$__rate_interval])", "out {{server_id}}", "B"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Traffic",
                "Payload through each server.",
                "bps",
                promql("rate(gnatsd_varz_in_bytes[$__rate_interval]) * 8", "in {{server_id}}", "A"),
                promql("rate(gnatsd_varz_out_bytes[$__rate_interval]) * 8", "out {{server_id}}", "B"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Stored, by stream",
                "Bytes that each stream holds.",
                "bytes",
                promql("max by (stream_name) (jetstream_stream_total_bytes)", "{{stream_name}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Messages, by stream",
                "Messages that each stream holds.",
                "short",
                promql("max by (stream_name) (jetstream_stream_total_messages)", "{{stream_name}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Storage, of its limit",
                "Share of the storage that JetStream may use.",
                "percentunit",
                promql("jetstream_server_total_message_bytes / (jetstream_server_max_storage > 0)", "{{server_id}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Waiting, by consumer",
                "Messages not delivered yet, for every consumer: those of the runners are the ticks of their sites.",
                "short",
                promql("max by (stream_name, consumer_name) (jetstream_consumer_num_pending)", "{{stream_name}} {{consumer_name}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Unacknowledged, by consumer",
                "Messages delivered and not acknowledged yet.",
                "short",
                promql("max by (stream_name, consumer_name) (jetstream_consumer_num_ack_pending)", "{{stream_name}} {{consumer_name}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Resident memory of each server.",
                "bytes",
                promql("gnatsd_varz_mem", "{{server_id}}"),
                width=8,
            )
        )
    )


def _postgres(built: Dashboard) -> Dashboard:
    hits = f"rate(pg_stat_database_blks_hit{{{DATABASE}}}[$__rate_interval])"
    reads = f"rate(pg_stat_database_blks_read{{{DATABASE}}}[$__rate_interval])"
    return (
        built.with_row(row("Postgres"))
        .with_panel(
            graph(
                "Connections, of the limit",
                "Share of the connections that Postgres allows. At 100 % it refuses the next one.",
                "percentunit",
                promql("sum by (instance) (pg_stat_activity_count) / max by (instance) (pg_settings_max_connections)", "{{instance}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Connections, by state",
                "What the connections to the database do.",
                "short",
                promql(f"sum by (state) (pg_stat_activity_count{{{DATABASE}}})", "{{state}}"),
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Size",
                "Size of the database on the disk.",
                "bytes",
                promql(f"pg_database_size_bytes{{{DATABASE}}}", "{{datname}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Transactions",
                "Transactions per second. One that was rolled back did nothing.",
                "cps",
                promql(f"sum(rate(pg_stat_database_xact_commit{{{DATABASE}}}[$__rate_interval]))", "committed", "A"),
                promql(f"sum(rate(pg_stat_database_xact_rollback{{{DATABASE}}}[$__rate_interval]))", "rolled back", "B"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Rows",
                "Rows per second.",
                "cps",
                promql(f"sum(rate(pg_stat_database_tup_returned{{{DATABASE}}}[$__rate_interval]))", "read", "A"),
                promql(f"sum(rate(pg_stat_database_tup_inserted{{{DATABASE}}}[$__rate_interval]))", "inserted", "B"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Found in memory",
                "Share of the blocks that Postgres did not have to read from the disk.",
                "percentunit",
                promql(f"sum({hits}) / (sum({hits}) + sum({reads}))", "found"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Longest transaction",
                "How long the oldest transaction has been open. It keeps Postgres from cleaning up.",
                "s",
                promql(f"max(pg_stat_activity_max_tx_duration{{{DATABASE}}})", "open for"),
            )
        )
        .with_panel(
            graph(
                "Deadlocks",
                "Deadlocks per hour. There should be none.",
                "short",
                promql(f"sum(increase(pg_stat_database_deadlocks{{{DATABASE}}}[1h]))", "deadlocks"),
            )
        )
    )
