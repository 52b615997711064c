"""The dashboard *Internet speed*: what was measured, from Postgres. It is what Grafana shows first.

Every query is bounded by `$__timeFilter(due_at)` or a bound of its own, so that Postgres leaves out the partitions of other
months, and names sites and engines, so that it can use the index on them. A run that failed or was missed is a row without
numbers: it breaks the line where it belongs.
"""

from grafana_foundation_sdk.builders import barchart, common, geomap, piechart, stat, table, timeseries, trend
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    FieldColor,
    QueryVariable,
    TextBoxVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    FrameGeometrySourceMode,
    StackingMode,
    TableCellBackgroundDisplayMode,
    TableColoredBackgroundCellOptions,
)
from grafana_foundation_sdk.models.dashboard import (
    AnnotationTarget,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    MatcherConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.geomap import MapCenterID
from grafana_foundation_sdk.models.piechart import PieChartLabels, PieChartType

from grafana.parts import ABSENT, COLORS, POSTGRES, Sql, colored, fixed, legend, lines, new, row, sql, titled

BY_HAND = "(by hand)"
"""Stands for the schedule of a run that has none; the parentheses keep it from being the name of one."""

# ARRAY[…]::text[] and not IN (…): on a system without a result the list is empty, which IN would call a syntax error.
CHOSEN = " AND ".join(
    (
        "site = ANY(ARRAY[${site:sqlstring}]::text[])",
        "engine = ANY(ARRAY[${engine:sqlstring}]::text[])",
        f"coalesce(schedule, '{BY_HAND}') = ANY(ARRAY[${{schedule:sqlstring}}]::text[])",
    )
)
"""What is chosen in the variables."""

WANTED = f"$__timeFilter(due_at) AND {CHOSEN}"
"""What is chosen, in the time range."""

SITE_AND_LINE = "site || coalesce('/' || line, '')"
"""Where a run was measured: two lines of a site are two curves."""

LOCAL = "due_at AT TIME ZONE '${__timezone}'"
"""The instant on the wall clock of whoever looks."""


def dashboard() -> Dashboard:
    """Return the dashboard."""
    built = new(
        "refresher-speed",
        "Internet speed",
        "What the speed tests measured, by site, line and engine. A gap in a line is a run that failed or was missed.",
        since="now-7d",
        refresh="1m",
    )
    for variable in (_site(), _engine(), _schedule(), _plan("download"), _plan("upload")):
        built = built.with_variable(variable)
    built = built.annotation(_annotation("Failed runs", "failed")).annotation(_annotation("Missed runs", "missed"))
    built = built.with_row(row("Newest run of each site, line and engine"))
    for title, column, unit, meaning in _LAST:
        built = built.with_panel(_last(title, column, unit, meaning))
    built = built.with_row(row("Over time"))
    built = built.with_panel(_rate("Download", "download_bps", "download"))
    built = built.with_panel(_rate("Upload", "upload_bps", "upload"))
    built = built.with_panel(_over_time("Latency", "latency_s", "s", "Round-trip time of the idle line.", 8))
    built = built.with_panel(_over_time("Jitter", "jitter_s", "s", "How much the round-trip time of the idle line varies.", 8))
    built = built.with_panel(
        _over_time("Packet loss", "packet_loss", "percentunit", "Share of the packets lost, where the engine counts them.", 8)
    )
    built = built.with_panel(
        _over_time("Latency under download", "download_latency_s", "s", "Round-trip time while the download fills the line.", 8)
    )
    built = built.with_panel(
        _over_time("Latency under upload", "upload_latency_s", "s", "Round-trip time while the upload fills the line.", 8)
    )
    built = built.with_panel(
        _over_time("Responsiveness", "responsiveness_rpm", "short", "Round trips per minute while the line is full; below 300 is poor.", 8)
    )
    built = built.with_row(row("When it is slow"))
    built = built.with_panel(_by_hour()).with_panel(_heat_map())
    built = built.with_row(row("Runs"))
    built = built.with_panel(_statuses()).with_panel(_data_used()).with_panel(_servers())
    built = built.with_panel(_last_runs())
    return built.with_row(row("Outages")).with_panel(_outages())


def _site() -> QueryVariable:
    # A loose index scan: one look into the index per site, however many millions of rows there are.
    return _choice(
        "site",
        "Site",
        """
        WITH RECURSIVE found AS (
          (SELECT site FROM results ORDER BY site LIMIT 1)
          UNION ALL
          SELECT (SELECT site FROM results WHERE site > found.site ORDER BY site LIMIT 1) FROM found WHERE found.site IS NOT NULL
        )
        SELECT site FROM found WHERE site IS NOT NULL
        """,
    )


def _engine() -> QueryVariable:
    return _choice(
        "engine",
        "Engine",
        """
        WITH RECURSIVE found AS (
          (SELECT site, engine FROM results ORDER BY site, engine LIMIT 1)
          UNION ALL
          SELECT following.site, following.engine FROM found CROSS JOIN LATERAL (
            SELECT site, engine FROM results WHERE (site, engine) > (found.site, found.engine) ORDER BY site, engine LIMIT 1
          ) AS following
        )
        SELECT DISTINCT engine FROM found ORDER BY engine
        """,
    )


def _schedule() -> QueryVariable:
    return _choice(
        "schedule",
        "Schedule",
        f"""
        WITH RECURSIVE found AS (
          (SELECT schedule FROM results WHERE schedule IS NOT NULL ORDER BY schedule LIMIT 1)
          UNION ALL
          SELECT (SELECT schedule FROM results WHERE schedule > found.schedule ORDER BY schedule LIMIT 1)
          FROM found WHERE found.schedule IS NOT NULL
        )
        SELECT schedule FROM found WHERE schedule IS NOT NULL
        UNION ALL
        SELECT '{BY_HAND}' WHERE EXISTS (SELECT FROM results WHERE schedule IS NULL)
        """,
    )


def _choice(name: str, label: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .datasource(POSTGRES)
        .query(Sql(query).sql)
        .refresh(VariableRefresh.ON_DASHBOARD_LOAD)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(VariableOption(text="All", value="$__all"))
    )


def _plan(direction: str) -> TextBoxVariable:
    return (
        TextBoxVariable(f"plan_{direction}")
        .label(f"Plan's {direction} (Mbit/s)")
        .description("What the contract promises; drawn as a line. Empty: no line.")
        .default_value("")
        .current(VariableOption(text="", value=""))
    )


class _SqlTarget(AnnotationTarget):
    """The query of an annotation. The SDK knows only that of Grafana's built-in annotations, and says so in a comment."""

    def __init__(self, query: Sql) -> None:
        super().__init__()
        self.query = query

    def to_json(self) -> dict[str, object]:
        return self.query.to_json()


def _annotation(name: str, status: str) -> AnnotationQuery:
    query = Sql(
        f"""
        SELECT due_at AS time, {SITE_AND_LINE} || ' ' || engine || ': ' || failure_message AS text, failure_kind AS tags
        FROM results
        WHERE {WANTED}
          AND status = '{status}'
        ORDER BY due_at DESC
        LIMIT 500
        """,
        "Anno",
    )
    built = AnnotationQuery().name(name).datasource(POSTGRES).enable(True).icon_color(COLORS[status])
    built._internal.target = _SqlTarget(query)
    return built


_LAST = (
    ("Download", "download_bps", "bps", "Download rate"),
    ("Upload", "upload_bps", "bps", "Upload rate"),
    ("Latency", "latency_s", "s", "Idle round-trip time"),
    ("Jitter", "jitter_s", "s", "Jitter"),
    ("Packet loss", "packet_loss", "percentunit", "Share of packets lost"),
    ("Time since", "extract(epoch FROM now() - finished_at)::double precision", "s", "Time since the end"),
)


def _last(title: str, column: str, unit: str, meaning: str) -> stat.Panel:
    query = f"""
    SELECT newest.place || ' ' || wanted_engine AS line, newest.value
    FROM unnest(ARRAY[${{site:sqlstring}}]::text[]) AS wanted_site
    CROSS JOIN unnest(ARRAY[${{engine:sqlstring}}]::text[]) AS wanted_engine
    CROSS JOIN LATERAL (
      SELECT DISTINCT ON (line) {SITE_AND_LINE} AS place, {column} AS value FROM results
      WHERE $__timeFilter(due_at)
        AND site = wanted_site
        AND engine = wanted_engine
        AND coalesce(schedule, '{BY_HAND}') = ANY(ARRAY[${{schedule:sqlstring}}]::text[])
        AND status IN ('succeeded', 'failed')
      ORDER BY line, due_at DESC, run_id DESC
    ) AS newest
    ORDER BY 1
    """
    description = f"{meaning} of the newest run in the time range that succeeded or failed. {ABSENT}: it failed, or has no such number."
    return (
        titled(stat.Panel(), title, description, unit)
        .datasource(POSTGRES)
        .span(4)
        .height(5)
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
        .color_scheme(fixed("text"))
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common.ReduceDataOptions().values(True).calcs([]).fields("/^value$/"))
        .with_target(sql(query))
    )


def _over_time(title: str, column: str, unit: str, meaning: str, width: int = 12) -> timeseries.Panel:
    query = f"""
    SELECT to_timestamp($__timeGroup(due_at, $__interval)) AS time, {SITE_AND_LINE} AS site, engine,
      percentile_cont(0.5) WITHIN GROUP (ORDER BY {column}) AS value
    FROM results
    WHERE {WANTED}
    GROUP BY 1, 2, 3
    ORDER BY 1
    """
    description = f"{meaning} The run itself; where a pixel holds several runs, their median. A gap: no run succeeded there."
    return (
        titled(lines(width), title, description, unit)
        .datasource(POSTGRES)
        .interval("1m")
        .display_name("${__field.labels.site} ${__field.labels.engine}")
        .with_target(sql(query, "runs"))
        # a frame per line, each with instants of its own: only then is a null a failure and not another line's instant
        .with_transformation(
            DataTransformerConfig(
                id_val="partitionByValues",
                filter_val=MatcherConfig(id_val="byRefId", options="runs"),
                options={"fields": ["site", "engine"], "keepFields": False, "naming": {"asLabels": True}},
            )
        )
    )


def _rate(title: str, column: str, direction: str) -> timeseries.Panel:
    # what is no number draws no line, instead of an error
    plan = f"""
    SELECT edge AS time, plan FROM
      (SELECT substring(${{plan_{direction}:sqlstring}} FROM '^\\s*([0-9]+([.][0-9]+)?)\\s*$')::double precision * 1e6 AS plan) AS typed,
      unnest(ARRAY[$__timeFrom()::timestamptz, $__timeTo()::timestamptz]) AS edge
    WHERE plan IS NOT NULL
    ORDER BY 1
    """
    return (
        _over_time(title, column, "bps", f"{title} rate, and the plan's where it is given above.")
        .with_target(sql(plan, "plan"))
        .override_by_query(
            "plan",
            [
                DynamicConfigValue(id_val="displayName", value="plan"),
                DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]}),
                DynamicConfigValue(id_val="custom.fillOpacity", value=0),
                DynamicConfigValue(id_val="custom.showPoints", value="never"),
                colored("text"),
            ],
        )
    )


def _by_hour() -> trend.Panel:
    query = f"""
    SELECT extract(hour FROM {LOCAL})::double precision AS hour,
      percentile_cont(0.1) WITHIN GROUP (ORDER BY download_bps) AS "slowest tenth",
      percentile_cont(0.5) WITHIN GROUP (ORDER BY download_bps) AS median,
      percentile_cont(0.9) WITHIN GROUP (ORDER BY download_bps) AS "fastest tenth"
    FROM results
    WHERE {WANTED}
      AND download_bps IS NOT NULL
    GROUP BY 1
    ORDER BY 1
    """
    description = (
        "Download rate by hour of the day, in the time zone shown: one run in ten was slower than the lowest line, one in ten faster "
        "than the highest. Choose one site and engine above: otherwise they are taken together."
    )
    return (
        titled(trend.Panel(), "Download by hour of the day", description, "bps")
        .datasource(POSTGRES)
        .span(24)
        .height(8)
        .min(0)
        .x_field("hour")
        .line_width(1)
        .span_nulls(False)
        .legend(legend())
        .override_by_name("hour", [DynamicConfigValue(id_val="unit", value="suffix:h"), DynamicConfigValue(id_val="decimals", value=0)])
        .override_by_name("slowest tenth", [colored("orange")])
        .override_by_name("median", [colored("blue"), DynamicConfigValue(id_val="custom.lineWidth", value=2)])
        .override_by_name("fastest tenth", [colored("green")])
        .with_target(sql(query))
    )


def _heat_map() -> table.Panel:
    hours = ",\n      ".join(
        f'percentile_cont(0.5) WITHIN GROUP (ORDER BY download_bps) FILTER (WHERE extract(hour FROM local) = {hour}) AS "{hour:02}"'
        for hour in range(24)
    )
    query = f"""
    SELECT (ARRAY['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'])[extract(isodow FROM local)::int] AS weekday,
      {hours}
    FROM (SELECT {LOCAL} AS local, download_bps FROM results WHERE {WANTED} AND download_bps IS NOT NULL) AS measured
    GROUP BY extract(isodow FROM local)
    ORDER BY extract(isodow FROM local)
    """
    description = (
        "Median download rate by weekday and hour, in the time zone shown: the redder, the slower. Grafana's own heat map has an instant "
        "on its axis and cannot fold weeks, so this is a coloured table. Choose one site and engine above, and two weeks or more."
    )
    return (
        titled(table.Panel(), "Download by weekday and hour", description, "bps")
        .datasource(POSTGRES)
        .span(24)
        .height(9)
        .decimals(0)
        .min_width(30)
        .color_scheme(FieldColor().mode(FieldColorModeId.CONTINUOUS_RD_YL_GR))
        .cell_options(TableColoredBackgroundCellOptions(mode=TableCellBackgroundDisplayMode.BASIC))
        .override_by_name("weekday", [DynamicConfigValue(id_val="custom.cellOptions", value={"type": "auto"}), colored("text")])
        .with_target(sql(query))
    )


def _statuses() -> piechart.Panel:
    columns = ", ".join(f"count(*) FILTER (WHERE status = '{status}') AS {status}" for status in COLORS)
    query = f"SELECT {columns} FROM results WHERE {WANTED} HAVING count(*) > 0"
    description = "How the runs of the time range ended. Every instant of a schedule is exactly one run: none is left out."
    panel = (
        titled(piechart.Panel(), "Runs by status", description, "short")
        .datasource(POSTGRES)
        .span(6)
        .height(9)
        .pie_type(PieChartType.DONUT)
        .display_labels([PieChartLabels.PERCENT])
        .legend(piechart.PieChartLegendOptions().values([]).show_legend(True))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .with_target(sql(query))
    )
    for status, color in COLORS.items():
        panel = panel.override_by_name(status, [colored(color)])
    return panel


def _data_used() -> barchart.Panel:
    # Not the time range but whole months: a bar for a part of one would say that the tests cost less than they do.
    query = f"""
    SELECT to_char(date_trunc('month', {LOCAL}), 'YYYY-MM') AS month,
      sum(download_bytes)::double precision AS download, sum(upload_bytes)::double precision AS upload
    FROM results
    WHERE due_at >= (date_trunc('month', $__timeTo()::timestamptz AT TIME ZONE '${{__timezone}}') - interval '11 months')
        AT TIME ZONE '${{__timezone}}'
      AND due_at <= $__timeTo()
      AND {CHOSEN}
    GROUP BY 1
    ORDER BY 1
    """
    description = (
        "Bytes that the tests moved, by month: the twelve months up to the end of the time range. Runs that failed are not in it: "
        "what they moved is not known."
    )
    return (
        titled(barchart.Panel(), "Data used by the tests", description, "decbytes")
        .datasource(POSTGRES)
        .span(9)
        .height(9)
        .x_field("month")
        .stacking(StackingMode.NORMAL)
        .fill_opacity(70)
        .legend(legend())
        .with_target(sql(query))
    )


def _servers() -> geomap.Panel:
    query = f"""
    SELECT server_latitude AS latitude, server_longitude AS longitude, server_name AS name, server_sponsor AS sponsor,
      count(*)::double precision AS runs, percentile_cont(0.5) WITHIN GROUP (ORDER BY download_bps) AS download
    FROM results
    WHERE {WANTED}
      AND server_latitude IS NOT NULL AND server_longitude IS NOT NULL
    GROUP BY 1, 2, 3, 4
    """
    description = "Where the servers are that were measured against. The background map is fetched from the internet by the browser."
    marker = {
        "showLegend": False,
        "style": {
            "color": {"fixed": "blue"},
            "opacity": 0.6,
            "size": {"field": "runs", "fixed": 5, "min": 5, "max": 20},
            "symbol": {"fixed": "img/icons/marker/circle.svg", "mode": "fixed"},
        },
    }
    servers = (
        common.MapLayerOptions()
        .type("markers")
        .name("Servers")
        .config(marker)
        .location(common.FrameGeometrySource().mode(FrameGeometrySourceMode.COORDS).latitude("latitude").longitude("longitude"))
        .tooltip(True)
    )
    return (
        titled(geomap.Panel(), "Servers", description, "bps")
        .datasource(POSTGRES)
        .span(9)
        .height(9)
        .view(geomap.MapViewConfig().id(MapCenterID.FIT).all_layers(True))
        .controls(geomap.ControlsOptions().show_zoom(True).mouse_wheel_zoom(False).show_attribution(True))
        .basemap(common.MapLayerOptions().type("default").name("Map"))
        .layers([servers])
        .override_by_regexp("/latitude|longitude/", [DynamicConfigValue(id_val="unit", value="degree")])
        .override_by_name("runs", [DynamicConfigValue(id_val="unit", value="short")])
        .with_target(sql(query))
    )


def _last_runs() -> table.Panel:
    query = f"""
    SELECT due_at AS due, {SITE_AND_LINE} AS site, engine, coalesce(schedule, '{BY_HAND}') AS schedule, status,
      download_bps AS download, upload_bps AS upload, latency_s AS latency, jitter_s AS jitter, packet_loss AS loss,
      bufferbloat_grade AS grade, limited_by AS "limited by", confidence,
      concat_ws(', ', server_sponsor, server_name) AS server, failure_kind || ': ' || failure_message AS reason
    FROM results
    WHERE {WANTED}
    ORDER BY due_at DESC, run_id DESC
    LIMIT 100
    """
    units = {"download": "bps", "upload": "bps", "latency": "s", "jitter": "s", "loss": "percentunit"}
    status = {"type": "value", "options": {name: {"color": color, "index": n} for n, (name, color) in enumerate(COLORS.items())}}
    description = "The newest hundred runs of the time range, and why those that have no numbers have none."
    panel = (
        titled(table.Panel(), "Last runs", description, "string")
        .datasource(POSTGRES)
        .span(24)
        .height(12)
        .filterable(True)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value=None, color="text")]))
        .override_by_name("due", [DynamicConfigValue(id_val="unit", value="dateTimeAsIso"), _wide(170)])
        .override_by_name(
            "status",
            [
                DynamicConfigValue(id_val="mappings", value=[status]),
                DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
                _wide(100),
            ],
        )
        .override_by_name("reason", [DynamicConfigValue(id_val="custom.minWidth", value=300)])
        .with_target(sql(query))
    )
    for column, unit in units.items():
        panel = panel.override_by_name(column, [DynamicConfigValue(id_val="unit", value=unit), _wide(110)])
    return panel


def _outages() -> table.Panel:
    # the rule is that of GET /api/v1/outages, in services/api/queries.py
    query = """
    WITH looked AS (
      SELECT site, line, schedule, status, failure_kind, failure_message, coalesce(started_at, due_at) AS at,
        count(*) FILTER (WHERE status = 'succeeded')
          OVER (PARTITION BY site, line, schedule ORDER BY coalesce(started_at, due_at), run_id) AS number
      FROM results
      WHERE $__timeFilter(due_at)
        AND site = ANY(ARRAY[${site:sqlstring}]::text[])
        AND engine = 'connectivity'
        AND (status = 'succeeded' OR failure_kind IN ('line_down', 'dns_down', 'redirected'))
    ), outage AS (
      -- one success and all failures until the next, which is the first of the following number
      SELECT site, line, schedule, count(*) FILTER (WHERE status = 'failed') AS checks,
        min(at) FILTER (WHERE status = 'failed') AS started_at, max(at) FILTER (WHERE status = 'failed') AS last_down_at,
        lead(min(at)) OVER (PARTITION BY site, line, schedule ORDER BY number) AS ended_at,
        (array_agg(failure_kind || ': ' || failure_message ORDER BY at DESC) FILTER (WHERE status = 'failed'))[1] AS reason
      FROM looked
      GROUP BY site, line, schedule, number
    )
    SELECT started_at AS start, ended_at AS "end",
      extract(epoch FROM coalesce(ended_at, last_down_at) - started_at)::double precision AS duration, site, line, schedule, checks, reason
    FROM outage
    WHERE checks > 0
    ORDER BY started_at DESC, site, line, schedule
    LIMIT 100
    """
    description = (
        "When the engine connectivity found a line down, DNS down or a login page, on the sites chosen above: the newest hundred of "
        f"the time range. From the first check that failed to the first that succeeded again; {ABSENT} as the end: none did, and the "
        "duration is that up to the last that failed."
    )
    panel = (
        titled(table.Panel(), "Outages", description, "string")
        .datasource(POSTGRES)
        .span(24)
        .height(9)
        .filterable(True)
        .color_scheme(fixed("text"))
        .override_by_name("duration", [DynamicConfigValue(id_val="unit", value="s"), _wide(110)])
        .override_by_name("checks", [DynamicConfigValue(id_val="unit", value="short"), _wide(90)])
        .override_by_name("reason", [DynamicConfigValue(id_val="custom.minWidth", value=300)])
        .with_target(sql(query))
    )
    for column in ("start", "end"):
        panel = panel.override_by_name(column, [DynamicConfigValue(id_val="unit", value="dateTimeAsIso"), _wide(170)])
    return panel


def _wide(pixels: int) -> DynamicConfigValue:
    return DynamicConfigValue(id_val="custom.width", value=pixels)
