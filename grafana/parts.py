"""What the dashboards are made of: data sources, queries, and panels as this project wants them."""

from textwrap import dedent
from typing import Any, Self, TypeVar

from grafana_foundation_sdk.builders import barchart, common, geomap, piechart, prometheus, stat, statetimeline, table, timeseries, trend
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, FieldColor, Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    GraphGradientMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TimeZoneBrowser,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DynamicConfigValue,
    FieldColorModeId,
)

POSTGRES = DataSourceRef(type_val="grafana-postgresql-datasource", uid="refresher-postgres")
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="refresher-prometheus")

TAG = "refresher"
"""All dashboards carry it: it is how they link to one another."""

ABSENT = "—"
"""Stands for a value that is not there. Never 0 or -1."""

COLORS = {"succeeded": "green", "failed": "red", "skipped": "blue", "missed": "orange"}
"""A status has the same colour everywhere."""


class Sql(Dataquery):
    """A query of Grafana's PostgreSQL data source, which the SDK has no class for.

    Always in the format `table`: the format `time_series` joins all series on their instants and puts a null wherever one of
    them has no row, so that sites which test at different minutes would have no lines at all.
    """

    FIELDS = frozenset({"datasource", "editorMode", "format", "rawQuery", "rawSql", "refId"})

    def __init__(self, sql: str, ref_id: str = "A") -> None:
        self.sql = "\n".join(line.rstrip() for line in dedent(sql).strip().splitlines())
        self.ref_id = ref_id

    def to_json(self) -> dict[str, object]:
        """Return what Grafana stores."""
        return {
            "refId": self.ref_id,
            "datasource": POSTGRES,
            "editorMode": "code",
            "format": "table",
            "rawQuery": True,
            "rawSql": self.sql,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read one; what is not a field of such a query is lost, as in the SDK's own classes."""
        return cls(data["rawSql"], data["refId"])


class _Query(Builder[Dataquery]):
    """What panels take: a builder."""

    def __init__(self, query: Dataquery) -> None:
        self._query = query

    def build(self) -> Dataquery:
        return self._query


def sql(text: str, ref_id: str = "A") -> Builder[Dataquery]:
    """Return a query to Postgres."""
    return _Query(Sql(text, ref_id))


def promql(expression: str, legend: str, ref_id: str = "A", *, instant: bool = False) -> Builder[Dataquery]:
    """Return a query to Prometheus, over the time range unless `instant`."""
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(expression).legend_format(legend).ref_id(ref_id)
    return _Query((query.instant() if instant else query.range()).build())


P = TypeVar(
    "P",
    timeseries.Panel,
    stat.Panel,
    table.Panel,
    barchart.Panel,
    geomap.Panel,
    piechart.Panel,
    trend.Panel,
    statetimeline.Panel,
)


def titled(panel: P, title: str, description: str, unit: str) -> P:
    """Give a panel what every panel has."""
    return panel.title(title).description(description).unit(unit).no_value(ABSENT)


def graph(
    title: str, description: str, unit: str, *queries: Builder[Dataquery], width: int = 12, stacked: bool = False
) -> timeseries.Panel:
    """Return lines over time from Prometheus; one line per query and labels. A gap stays a gap."""
    panel = titled(lines(width), title, description, unit).datasource(PROMETHEUS)
    if stacked:
        panel = panel.fill_opacity(25).stacking(common.StackingConfig().group("A").mode(StackingMode.NORMAL))
    for query in queries:
        panel = panel.with_target(query)
    return panel


def lines(width: int) -> timeseries.Panel:
    """Return an empty panel of lines that start at 0."""
    return (
        timeseries.Panel()
        .span(width)
        .height(8)
        .min(0)
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(8)
        .gradient_mode(GraphGradientMode.OPACITY)
        .show_points(VisibilityMode.AUTO)
        .span_nulls(False)
        .legend(legend())
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )


def legend() -> common.VizLegendOptions:
    """Return a legend below the graph."""
    return common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)


def number(title: str, description: str, unit: str, query: Builder[Dataquery], width: int = 4) -> stat.Panel:
    """Return the newest value of each series of Prometheus in large type."""
    return (
        titled(stat.Panel(), title, description, unit)
        .datasource(PROMETHEUS)
        .span(width)
        .height(4)
        .graph_mode(BigValueGraphMode.NONE)
        .color_scheme(fixed("text"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .with_target(query)
    )


def fixed(color: str) -> FieldColor:
    """Return one colour for everything."""
    return FieldColor().mode(FieldColorModeId.FIXED).fixed_color(color)


def colored(color: str) -> DynamicConfigValue:
    """Return the property that gives a field its colour."""
    return DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})


def row(title: str) -> Row:
    """Return a heading."""
    return Row(title)


def new(uid: str, title: str, description: str, *, since: str, refresh: str) -> Dashboard:
    """Return an empty dashboard that shows the browser's time and links to the others, taking the time range along."""
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone(TimeZoneBrowser)
        .time(since, "now")
        .refresh(refresh)
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(DashboardLink("Refresher").type(DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(False).keep_time(True))
    )
