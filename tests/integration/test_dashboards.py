"""Grafana's dashboards: what is committed, and every query in them against a real Postgres and a real Prometheus.

Grafana itself is not run here: no package of it was found in Debian, PyPI or npm.
"""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import DataqueryConfig, register_dataquery_variant
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.build import documents
from grafana.parts import POSTGRES, PROMETHEUS, Sql
from shared.database import Connection
from tests import dashboards
from tests.integration.api_server import in_process
from tests.integration.conftest import Bus, Start, interval, until
from tests.integration.rows import insert, row
from tests.prometheus import exporters, prometheus
from tests.servers import Nats

NOW = datetime.now(UTC).replace(microsecond=0)
SINCE = NOW - timedelta(days=14)

EMPTY: dashboards.Values = {
    "site": [],
    "engine": [],
    "schedule": [],
    "plan_download": "",
    "plan_upload": "",
    "__interval": "10m",
    "__timezone": "Europe/Berlin",
    "window": "1h",
    "__rate_interval": "4s",
}
CHOSEN: dashboards.Values = {
    **EMPTY,
    "site": ["home", "office"],
    "engine": ["speedtest", "o'clock", "connectivity"],
    "schedule": ["hourly", "(by hand)"],
    "plan_download": "100",
    "plan_upload": " 37.5 ",
}


@pytest.mark.parametrize("name", sorted(documents()))
def test_a_dashboard_is_what_its_python_says(name: str) -> None:
    """The committed file is what `make dashboards` writes, to the byte."""
    assert (dashboards.DIRECTORY / "dashboards" / name).read_text() == documents()[name], "run `make dashboards` and commit what it wrote"


def test_there_is_no_dashboard_without_python() -> None:
    """Grafana reads every file of the directory: each of them is written by `make dashboards`."""
    assert set(dashboards.committed()) == set(documents())


def _unknown(document: dict[str, Any]) -> list[str]:
    """Return the fields of a dashboard that Grafana's own classes do not know: they lose them when they read it."""
    register_default_plugins()
    register_dataquery_variant(DataqueryConfig(identifier=str(POSTGRES.type_val), from_json_hook=Sql.from_json))
    written = json.loads(json.dumps(Dashboard.from_json(json.loads(json.dumps(document))), cls=JSONEncoder))
    both = (each["annotations"].get("list", []) for each in (document, written))
    for before, after in zip(*both, strict=True):
        # the SDK knows only the query of the built-in annotation here, and leaves a note that any query may stand there
        after["target"] = json.loads(json.dumps(Sql.from_json(before["target"]), cls=JSONEncoder))
    return list(_lost(document, written, ""))


def _lost(before: Any, after: Any, place: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from _lost(value, after.get(name, _NOTHING), f"{place}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (value, kept) in enumerate(zip(before, after, strict=True)):
            yield from _lost(value, kept, f"{place}.{number}")
    elif before != after:
        yield f"{place} = {before!r}"


_NOTHING = object()


@pytest.mark.parametrize("name", sorted(documents()))
def test_a_dashboard_has_only_fields_of_grafanas_schema(name: str) -> None:
    """Nothing in a dashboard is unknown to Grafana's schema: a field that is misspelt would silently do nothing."""
    assert _unknown(dashboards.committed()[name]) == []


@pytest.mark.parametrize(
    "path", ["panels.8.fieldConfig.defaults.custom", "panels.8.targets.0", "panels.8.options", "templating.list.0", ""]
)
def test_the_schema_finds_a_misspelt_field(path: str) -> None:
    """The check above sees a field that is not Grafana's, wherever it stands."""
    document = dashboards.committed()["speed.json"]
    place = document
    for step in filter(None, path.split(".")):
        place = place[int(step) if step.isdecimal() else step]
    place["spanNull"] = True
    assert _unknown(document) == [f".{path}.spanNull = True".replace("..", ".")]


def test_dashboards_and_panels_have_names_of_their_own() -> None:
    """A dashboard's uid and a panel's id are in people's links: each stands for one thing only."""
    found = dashboards.committed().values()
    assert len({document["uid"] for document in found}) == len(found)
    for document in found:
        ids = [panel["id"] for panel in document["panels"]]
        assert len(set(ids)) == len(ids)


def test_dashboards_show_the_browsers_time_and_lead_to_one_another() -> None:
    """Every dashboard shows the time zone of the browser, a range and a refresh that suit it, and links to the others."""
    for document in dashboards.committed().values():
        assert document["timezone"] == "browser"
        assert document["time"]["to"] == "now"
        assert document["refresh"] in {"30s", "1m"}
        (link,) = document["links"]
        assert (link["type"], link["keepTime"]) == ("dashboards", True)
        assert set(link["tags"]) <= set(document["tags"])


def test_a_panel_says_what_it_shows_in_which_unit() -> None:
    """Every panel has a title, a description and a unit, and reads from a provisioned data source."""
    provisioned = {source["uid"] for source in _provisioning("datasources")["datasources"]}
    for name, document in dashboards.committed().items():
        for panel in dashboards.panels(document):
            where = f"{name}, panel {panel['title']}"
            assert panel["description"].endswith("."), where
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["unit"], where
            assert defaults["noValue"] == "—", f"{where}: a value that is absent is not a number"
            assert panel["targets"], where
            sources = {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])}
            assert sources <= provisioned, where
            ids = [target["refId"] for target in panel["targets"]]
            assert len(set(ids)) == len(ids), where
    assert {POSTGRES.uid, PROMETHEUS.uid} == provisioned


def test_panels_fill_the_page_and_do_not_overlap() -> None:
    """Grafana's page has 24 columns: no two panels share a cell, and none hangs over the edge."""
    for name, document in dashboards.committed().items():
        taken: set[tuple[int, int]] = set()
        for panel in document["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert at["x"] + at["w"] <= 24, f"{name}, panel {panel['title']}"
            assert not cells & taken, f"{name}, panel {panel['title']}"
            taken |= cells


def test_a_line_has_a_gap_where_there_is_no_value() -> None:
    """No line runs across a run without a number, and none is drawn at 0 for it."""
    for name, document in dashboards.committed().items():
        for panel in dashboards.panels(document):
            if panel["type"] in {"timeseries", "trend"}:
                custom = panel["fieldConfig"]["defaults"]["custom"]
                assert custom["spanNulls"] is False, f"{name}, panel {panel['title']}"


def _provisioning(what: str) -> Any:
    return yaml.safe_load((dashboards.DIRECTORY / "provisioning" / what / "refresher.yml").read_text())


def test_grafana_is_given_both_sources_and_no_secret() -> None:
    """Postgres as a user that only reads, with its password from a secret's file; and Prometheus."""
    postgres, prometheus = _provisioning("datasources")["datasources"]
    assert (postgres["type"], postgres["uid"]) == (POSTGRES.type_val, POSTGRES.uid)
    assert (postgres["url"], postgres["user"], postgres["jsonData"]["database"]) == ("postgres:5432", "refresher_grafana", "refresher")
    assert postgres["secureJsonData"] == {"password": "$__file{/run/secrets/database-refresher_grafana}"}
    assert (prometheus["type"], prometheus["uid"]) == (PROMETHEUS.type_val, PROMETHEUS.uid)
    assert prometheus["url"] == "http://prometheus:9090"
    scraped = yaml.safe_load((dashboards.DIRECTORY.parent / "deploy" / "prometheus" / "prometheus.yml").read_text())["global"]
    assert prometheus["jsonData"]["timeInterval"] == scraped["scrape_interval"], "Grafana takes rates over four scrapes"
    (provider,) = _provisioning("dashboards")["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert not provider["allowUiUpdates"]


def some_results() -> list[dict[str, Any]]:
    """Return two weeks of results: two sites, two engines, every status, runs by hand; slower in the evening."""
    chance = random.Random(7)
    found = []
    for site, engine, minute in (("home", "speedtest", 3), ("office", "speedtest", 33), ("office", "o'clock", 47)):
        for hour in range(14 * 24):
            due_at = SINCE.replace(minute=minute) + timedelta(hours=hour)
            status = chance.choices(("succeeded", "failed", "skipped", "missed"), (90, 5, 2, 3))[0]
            columns: dict[str, Any] = {"site": site, "engine": engine, "status": status}
            if status == "succeeded":
                busy = 0.6 if due_at.hour in {18, 19, 20, 21} else 1.0
                columns |= {
                    "download_bps": chance.gauss(94e6, 2e6) * busy,
                    "upload_bps": chance.gauss(38e6, 1e6) * busy,
                    "packet_loss": chance.choice((0.0, 0.01)),
                    "download_latency_s": chance.uniform(0.02, 0.2),
                    "upload_latency_s": chance.uniform(0.02, 0.2),
                    "responsiveness_rpm": chance.uniform(200, 2_000),
                    "bufferbloat_grade": chance.choice(("A+", "F")),
                    "limited_by": "line",
                    "confidence": "reliable",
                    "download_bytes": 120_000_000,
                    "upload_bytes": 50_000_000,
                    "server_name": "Berlin",
                    "server_sponsor": "A provider",
                    "server_latitude": 52.5,
                    "server_longitude": 13.4,
                }
            if hour % 50 == 0:
                columns |= {"schedule": None, "trigger": "manual"}
            found.append(row(due_at, **columns))
    return found + some_checks()


def some_checks() -> list[dict[str, Any]]:
    """Return a day of checks of three lines, each ending in any way: up, down, without DNS, at a login page, misconfigured, not run."""
    chance = random.Random(8)
    ends = ("line_down", "dns_down", "redirected", "misconfigured", "line_busy")
    found = []
    for site, line in (("home", None), ("home", "lte"), ("office", None)):
        for minute in range(0, 24 * 60, 10):
            due_at = NOW - timedelta(days=1) + timedelta(minutes=minute)
            columns: dict[str, Any] = {"site": site, "line": line, "engine": "connectivity", "started_at": due_at + timedelta(seconds=1)}
            if chance.random() < 0.5 or minute == 24 * 60 - 10:
                kind = chance.choice(ends) if minute < 24 * 60 - 10 else ends[0]
                status = "skipped" if kind == "line_busy" else "failed"
                columns |= {"status": status, "failure_kind": kind, "failure_message": f"minute {minute}"}
            found.append(row(due_at, **columns))
    return found


@pytest.fixture
async def reader(database: Connection, database_url: str) -> AsyncIterator[Connection]:
    """Give a connection that may do what Grafana may: read the table of results."""
    await database.execute("CREATE ROLE reading_results")
    await database.execute("GRANT SELECT ON results TO reading_results")
    connection = await asyncpg.connect(database_url, server_settings={"timezone": "UTC"})
    await connection.execute("SET ROLE reading_results")
    yield connection
    await connection.close()
    await database.execute("DROP OWNED BY reading_results")
    await database.execute("DROP ROLE reading_results")


def _sql(query: dashboards.Query, values: dashboards.Values, since: datetime = SINCE) -> str:
    return dashboards.expand(dashboards.interpolate(query.text, values), since, NOW)


async def test_every_query_to_postgres_answers(database: Connection, reader: Connection) -> None:
    """Each panel's, annotation's and variable's query runs as a user who may only read, and no column of its answer is empty."""
    await insert(database, *some_results())
    asked = dashboards.queries(str(POSTGRES.uid))
    assert len(asked) >= 20
    for query in asked:
        rows = await reader.fetch(_sql(query, CHOSEN))
        assert rows, f"{query.place}: no row"
        for column in rows[0].keys():  # noqa: SIM118 - a record, not a mapping: iterating yields values
            assert any(each[column] is not None for each in rows), f"{query.place}: {column} is always null"


async def test_the_variables_offer_what_there_is(database: Connection, reader: Connection) -> None:
    """Site, engine and schedule offer each name once, runs by hand as well."""
    await insert(database, *some_results())
    found = {query.place.rsplit(" ", 1)[1]: query for query in dashboards.queries(str(POSTGRES.uid)) if query.variable}
    for name in ("site", "engine", "schedule"):
        assert sorted(each[0] for each in await reader.fetch(found[name].text)) == sorted(CHOSEN[name])


async def test_a_system_without_results_shows_no_error(reader: Connection) -> None:
    """Before the first result every query answers with no row, instead of an error in every panel."""
    for query in dashboards.queries(str(POSTGRES.uid)):
        assert await reader.fetch(_sql(query, EMPTY)) == [], query.place


def _of(title: str, ref_id: str = "A") -> dashboards.Query:
    return next(each for each in dashboards.queries(str(POSTGRES.uid)) if each.place.endswith(f" {title}, query {ref_id}"))


async def test_lines_of_a_site_are_curves_of_their_own(database: Connection, reader: Connection) -> None:
    """What two lines measured in the same moment is no median, and the newest of each is shown."""
    at = NOW - timedelta(minutes=30)
    await insert(database, row(at), row(at, line="lte", download_bps=20e6), row(at - timedelta(hours=1), line="lte", download_bps=10e6))
    rows = await reader.fetch(_sql(_of("Download", "runs"), CHOSEN))
    assert {(each["site"], each["value"]) for each in rows} == {("home", 94e6), ("home/lte", 20e6), ("home/lte", 10e6)}
    newest = await reader.fetch(_sql(_of("Download"), CHOSEN))
    assert {each["line"]: each["value"] for each in newest} == {"home speedtest": 94e6, "home/lte speedtest": 20e6}


@pytest.mark.parametrize("typed", ["", "fast", "100 Mbit/s", "-1", "1e9", "'; SELECT 1 --"])
async def test_a_plan_that_is_no_number_draws_no_line(reader: Connection, typed: str) -> None:
    """Whatever is typed into the plan's box, the panel has no error."""
    assert await reader.fetch(_sql(_of("Download", "plan"), {**CHOSEN, "plan_download": typed})) == []


async def test_the_plan_is_a_line_over_the_whole_range(reader: Connection) -> None:
    """The plan's rate, in bit/s, from the first to the last instant shown."""
    rows = await reader.fetch(_sql(_of("Upload", "plan"), CHOSEN))
    assert [tuple(each) for each in rows] == [(SINCE, 37.5e6), (NOW, 37.5e6)]


async def test_a_run_that_failed_or_was_missed_breaks_the_line(database: Connection, reader: Connection) -> None:
    """It is a row without a number between its neighbours: the line has a gap there, and nothing at 0."""
    hours = [NOW - timedelta(hours=hour) for hour in (4, 3, 2, 1)]
    await insert(
        database,
        *(row(at, status=status) for at, status in zip(hours, ("succeeded", "failed", "missed", "succeeded"), strict=True)),
    )
    rows = await reader.fetch(_sql(_of("Download", "runs"), CHOSEN))
    assert [each["value"] for each in rows] == [94e6, None, None, 94e6]
    assert {each.get("line"): each["value"] for each in await reader.fetch(_sql(_of("Download"), CHOSEN))} == {"home speedtest": 94e6}
    await insert(database, row(NOW, status="failed"))
    assert [each["value"] for each in await reader.fetch(_sql(_of("Download"), CHOSEN))] == [None], "the newest run has no number"


async def test_outages_are_those_of_the_api(database: Connection, reader: Connection, nats_server: Nats, database_url: str) -> None:
    """The panel lists what `GET /api/v1/outages` lists of the chosen sites, the newest first, with an end where there is one."""
    await insert(database, *some_checks())
    period = {"from": SINCE.isoformat(), "to": NOW.isoformat(), "limit": "100"}
    async with in_process(nats_server.url, database_url) as api:
        listed = (await api.get("/api/v1/outages", params=period)).json()["items"]
    assert {each["open"] for each in listed} == {True, False}
    assert {each["failure"]["kind"] for each in listed} == {"line_down", "dns_down", "redirected"}
    expected = [
        (
            datetime.fromisoformat(each["started_at"]),
            each["ended_at"] and datetime.fromisoformat(each["ended_at"]),
            each["duration_s"],
            each["site"],
            each["line"],
            each["schedule"],
            each["checks"],
            f"{each['failure']['kind']}: {each['failure']['message']}",
        )
        for each in listed
    ]
    assert [tuple(each) for each in await reader.fetch(_sql(_of("Outages"), CHOSEN))] == expected
    only = await reader.fetch(_sql(_of("Outages"), {**CHOSEN, "site": ["office"]}))
    assert {each["site"] for each in only} == {"office"}


async def test_hours_and_months_are_those_of_the_viewer(database: Connection, reader: Connection) -> None:
    """The same instant is in another hour, and even in another month, for a viewer in another time zone."""
    at = datetime(2026, 10, 31, 23, 30, tzinfo=UTC)
    await insert(database, row(at, download_bytes=1, upload_bytes=1))
    for zone, hour, month in (("Europe/Berlin", 0, "2026-11"), ("UTC", 23, "2026-10"), ("America/New_York", 19, "2026-10")):
        values = {**CHOSEN, "__timezone": zone}
        queries = {
            title: dashboards.interpolate(_of(title).text, values) for title in ("Download by hour of the day", "Data used by the tests")
        }
        shown = {title: dashboards.expand(text, at - timedelta(days=1), at + timedelta(days=1)) for title, text in queries.items()}
        assert [each["hour"] for each in await reader.fetch(shown["Download by hour of the day"])] == [hour]
        assert [each["month"] for each in await reader.fetch(shown["Data used by the tests"])] == [month]


async def test_queries_to_postgres_use_the_indexes(database: Connection) -> None:
    """Each query reads by an index and touches no partition outside its range; whole months only where the title says so."""
    long_ago = NOW - timedelta(days=800)
    await insert(database, *some_results(), row(long_ago))
    await database.execute("ANALYZE results")
    await database.execute("SET enable_seqscan = off")  # a few hundred rows are read faster without an index
    for query in dashboards.queries(str(POSTGRES.uid)):
        plan = "\n".join(each[0] for each in await database.fetch(f"EXPLAIN {_sql(query, CHOSEN)}"))
        assert "Seq Scan" not in plan, f"{query.place}:\n{plan}"
        if not query.variable:
            assert f"results_{long_ago:%Y_%m}" not in plan, f"{query.place}:\n{plan}"


@pytest.mark.timeout(240)
async def test_every_query_to_prometheus_answers(bus: Bus, start: Start, database_url: str, tmp_path: Path) -> None:
    """Each panel's query has numbers once the services have worked and the exporters were read, and its legend's labels are there."""
    await bus.put(interval("often", 1))
    services = {name: start(name, database_url) for name in ("recorder", "runner", "scheduler", "api")}
    missing = dashboards.queries(str(PROMETHEUS.uid))
    assert len(missing) >= 50
    with exporters() as jobs, prometheus(tmp_path, jobs | {name: (each.url, "/metrics") for name, each in services.items()}) as server:

        async def all_answer() -> bool:
            nonlocal missing
            services["api"].metric("refresher_api_live_clients")  # a request like any other
            answers = await asyncio.gather(*(server.series(dashboards.interpolate(query.text, CHOSEN)) for query in missing))
            for query, series in zip(missing, answers, strict=True):
                for label in re.findall(r"{{(\w+)}}", query.legend):
                    assert all(label in each for each in series), f"{query.place}: no label {label}"
            missing = [query for query, series in zip(missing, answers, strict=True) if not series]
            return not missing

        try:
            await until(all_answer, 90)
        except AssertionError as error:
            raise AssertionError("\n".join(["no number:", *(f"{query.place}: {query.text}" for query in missing)])) from error
