"""Grafana as far as a query can tell: variables are put in as its pages do it, macros as its PostgreSQL data source does."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parents[1] / "grafana"

Values = Mapping[str, str | list[str]]
"""The chosen values of variables; several for one that takes several."""


@dataclass(frozen=True)
class Query:
    """A query of a dashboard, and where it stands."""

    place: str
    source: str
    """The uid of its data source."""
    text: str
    legend: str = ""
    variable: bool = False


def committed() -> dict[str, dict[str, Any]]:
    """Return the dashboards as they are committed, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((DIRECTORY / "dashboards").glob("*.json"))}


def panels(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of a dashboard without the headings."""
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def queries(uid: str) -> list[Query]:
    """Return every query to a data source: of panels, of annotations and of variables."""
    return [query for name, document in committed().items() for query in _queries(name, document) if query.source == uid]


def _queries(name: str, document: dict[str, Any]) -> Iterator[Query]:
    for panel in panels(document):
        for target in panel["targets"]:
            text = target.get("rawSql") or target.get("expr")
            place = f"{name}, panel {panel['id']} {panel['title']}, query {target['refId']}"
            yield Query(place, target["datasource"]["uid"], text, target.get("legendFormat", ""))
    for annotation in document.get("annotations", {}).get("list", []):
        yield Query(f"{name}, annotation {annotation['name']}", annotation["datasource"]["uid"], annotation["target"]["rawSql"])
    for variable in document.get("templating", {}).get("list", []):
        if variable["type"] == "query":
            yield Query(f"{name}, variable {variable['name']}", variable["datasource"]["uid"], variable["query"], variable=True)


def interpolate(text: str, values: Values) -> str:
    """Put the values of variables into a query: `$name`, `${name}` and `${name:sqlstring}`.

    Raises: KeyError for a variable that there is not.
    """

    def put(match: re.Match[str]) -> str:
        name, form = match["bare"] or match["name"], match["form"]
        if name.startswith("__") and name not in values:
            return match[0]  # a macro: not the page's business but the data source's
        value = values[name]
        if form == "sqlstring":
            return ",".join("'" + each.replace("'", "''") + "'" for each in ([value] if isinstance(value, str) else value))
        assert not form, f"{match[0]}: only sqlstring is known here"
        assert isinstance(value, str), f"{match[0]}: several values need a format"
        return value

    return re.sub(r"\$(?P<bare>\w+)|\$\{(?P<name>\w+)(?::(?P<form>\w+))?\}", put, text)


def expand(text: str, since: datetime, until: datetime) -> str:
    """Expand the macros of the PostgreSQL data source. Raises: KeyError for one that it does not have."""

    def group(column: str, interval: str) -> str:
        seconds = int(interval[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[interval[-1]]
        return f"floor(extract(epoch from {column})/{seconds})*{seconds}"

    def put(match: re.Match[str]) -> str:
        arguments = [argument.strip() for argument in match[2].split(",")]
        if match[1] == "__timeGroup" and text[match.end() : match.end() + 1] == ",":
            return group(*arguments) + ' AS "time"'
        return {
            "__timeFilter": lambda column: f"{column} BETWEEN '{_moment(since)}' AND '{_moment(until)}'",
            "__timeFrom": lambda _: f"'{_moment(since)}'",
            "__timeTo": lambda _: f"'{_moment(until)}'",
            "__timeGroup": group,
        }[match[1]](*arguments)

    return re.sub(r"\$(\w+)\(([^)]*)\)", put, text)


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
