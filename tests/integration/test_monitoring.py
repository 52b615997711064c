"""What Prometheus and Alertmanager are told: held by their own programs, and run against the real services."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import run
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from services.embedded.program import Program
from shared.database import Connection
from tests import ports
from tests.debian import program
from tests.http import plain_client, wait_until_ready
from tests.integration.conftest import Bus, Start, interval, until
from tests.integration.rows import insert, row
from tests.servers import Postgres, start, stop
from tests.standin.server import StandIn

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
ALERTMANAGER = ROOT / "deploy/alertmanager"
SHIPPED = tuple(PROMETHEUS / "rules" / name for name in ("recording.yml", "alerts.yml"))
PLAN = PROMETHEUS / "plan.example.yml"


def rules(*files: Path) -> list[dict[str, Any]]:
    """Return all rules of these files."""
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules(*SHIPPED) if "alert" in rule}


def says(*command: str | Path) -> str:
    """Run a program that must succeed and return its output."""
    done = run([str(each) for each in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def promtool() -> Path:
    """Give Prometheus' own checker."""
    return program("prometheus", "usr/bin/promtool")


@contextmanager
def running(name: str, directory: Path, *arguments: str, ready: str, **environment: str) -> Iterator[str]:
    """Run a program of Debian's on a loopback port until the end of the block; wait until `ready` answers, give its URL."""
    port = ports.take()
    log = directory / f"{name}.log"
    command = (str(program(name, f"usr/bin/{name}")), f"--web.listen-address=127.0.0.1:{port}", *arguments)
    process = start(Program(name, command, environment, log=log))
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(f"{url}{ready}", process, log)
        yield url
    finally:
        stop(process)


def test_prometheus_accepts_what_it_is_given(promtool: Path) -> None:
    """The configuration and every rule are valid and name nothing that is not there, the example of a plan included."""
    assert "SUCCESS" in says(promtool, "check", "config", PROMETHEUS / "prometheus.yml")
    (pattern,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["rule_files"]
    assert {*SHIPPED} <= {*PROMETHEUS.glob(pattern)}
    assert "SUCCESS" in says(promtool, "check", "rules", "--lint=all", "--lint-fatal", *SHIPPED, PLAN)


def test_the_rules_do_what_their_tests_say(promtool: Path) -> None:
    """`promtool test rules`: what each alert needs to fire, what it then says, and what ends it."""
    files = sorted((PROMETHEUS / "tests").glob("*.yml"))
    assert says(promtool, "test", "rules", *files).count("SUCCESS") == len(files)


@pytest.mark.parametrize("file", ["alertmanager.yml", "alertmanager.example.yml"])
def test_alertmanager_accepts_what_it_is_given(file: str) -> None:
    """Both files are valid; the shipped one sends nothing anywhere, the example tells of every end."""
    assert "SUCCESS" in says(program("prometheus-alertmanager", "usr/bin/amtool"), "check-config", ALERTMANAGER / file)
    receivers = yaml.safe_load((ALERTMANAGER / file).read_text())["receivers"]
    senders = [sender for receiver in receivers for kind in receiver.keys() - {"name"} for sender in receiver[kind]]
    assert bool(senders) == (file == "alertmanager.example.yml")
    assert all(sender["send_resolved"] for sender in senders)


@pytest.mark.parametrize(
    ("severity", "file", "receivers"),
    [
        ("critical", "alertmanager.yml", "page-only"),
        ("critical", "alertmanager.example.yml", "webhook,apprise,mail"),
        ("warning", "alertmanager.example.yml", "webhook,mail"),
    ],
)
def test_alerts_go_where_the_files_say(severity: str, file: str, receivers: str) -> None:
    """Alertmanager's own routing: every alert to the webhook and by mail, what cannot wait by Apprise too; none by default."""
    routes = ("config", "routes", "test", f"--config.file={ALERTMANAGER / file}", f"--verify.receivers={receivers}")
    says(program("prometheus-alertmanager", "usr/bin/amtool"), *routes, "alertname=TargetDown", f"severity={severity}")


def test_messages_are_grouped() -> None:
    """One message per kind of alert, however many sites; only Apprise, which takes one text, gets each alert by itself."""
    for file in ("alertmanager.yml", "alertmanager.example.yml"):
        route = yaml.safe_load((ALERTMANAGER / file).read_text())["route"]
        assert route["group_by"] == ["alertname"]
        assert {each["receiver"]: each["group_by"] for each in route.get("routes", ()) if "group_by" in each} in ({}, {"apprise": ["..."]})


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_complete(alert: str) -> None:
    """It says what is the matter and what to do, how bad it is, is explained in the documentation, and waits a while."""
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["for"]
    summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
    assert re.fullmatch(r"[^:]+: [a-z].+\.", summary), "what is the matter, a colon, what to do"
    assert len(description) > len(summary)
    assert f"### {alert}\n" in (ROOT / "docs/monitoring.md").read_text()


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_firing_and_resolving(alert: str) -> None:
    """One course of events in which it is silent, fires, and is silent again."""
    courses = [
        [bool(check["exp_alerts"]) for check in test["alert_rule_test"] if check["alertname"] == alert]
        for file in (PROMETHEUS / "tests").glob("*.yml")
        for test in yaml.safe_load(file.read_text())["tests"]
    ]
    phases = [[fires for fires, _ in itertools.groupby(course)] for course in courses]
    assert [False, True, False] in phases


def static(targets: dict[str, str], alertmanager: str) -> dict[str, Any]:
    """Return the shipped configuration with these targets, by job, in place of names that only containers know."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(file) for file in (*SHIPPED, PLAN)]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    config["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": [targets[job["job_name"]]]}]}
        for job in config["scrape_configs"]
        if job["job_name"] in targets
    ]
    return config


def test_every_replica_of_the_services_is_watched() -> None:
    """The four services are found by DNS under their names and ports, so that scaling needs no change here."""
    jobs = {job["job_name"]: job for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]}
    ports = {"api": 8470, "scheduler": 8471, "runner": 8472, "recorder": 8473}
    found = {name: jobs[name]["dns_sd_configs"] for name in ports}
    assert found == {name: [{"names": [name], "type": "A", "port": port, "refresh_interval": "15s"}] for name, port in ports.items()}
    assert jobs["cadvisor"]["dns_sd_configs"] == [{"names": ["cadvisor"], "type": "A", "port": 8080}], "only where there is one"
    others = {job["static_configs"][0]["targets"][0] for name, job in jobs.items() if name not in {*ports, "cadvisor"}}
    assert others == {
        *("nats-exporter:7777", "postgres-exporter:9187", "node-exporter:9100"),
        *("localhost:9090", "alertmanager:9093"),
    }


_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NO_METRICS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(by|on|group_left)\s*\([^)]*\)|\w+\(")
_WORDS_OF_THE_LANGUAGE = {"and", "or", "unless", "min", "max", "sum"}


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression: what is no label, time, function or word of the language."""
    return {*_WORD.findall(_NO_METRICS.sub(" ", expression))} - _WORDS_OF_THE_LANGUAGE


async def test_every_rule_works_on_the_real_services(
    bus: Bus, start: Start, database: Connection, database_url: str, postgres_server: Postgres, tmp_path: Path
) -> None:
    """A real Prometheus on real services and exporters: every metric in a rule exists, every rule is evaluated, all is quiet.

    And what this is all for arrives: the download rate of a real run.
    """
    now = datetime.now(UTC)
    await insert(database, *(row(now - timedelta(minutes=minutes)) for minutes in (1, 2, 3)))
    await bus.put(interval("steady", 5))
    with StandIn(download_bps=200e6) as line:
        services = {name: start(name, database_url) for name in ("scheduler", "recorder", "api")}
        services["runner"] = start("runner", **line.environment())
        wanted = await bus.tick("speedtest", upload=False)
        targets = {name: urlsplit(service.url).netloc for name, service in services.items()}
        source = postgres_server.url
        with (
            running("prometheus-node-exporter", tmp_path, ready="/") as node,
            running("prometheus-postgres-exporter", tmp_path, ready="/", DATA_SOURCE_NAME=source) as postgres,
        ):
            targets |= {"node": urlsplit(node).netloc, "postgres": urlsplit(postgres).netloc}
            config = tmp_path / "prometheus.yml"
            config.write_text(yaml.safe_dump(static(targets, "127.0.0.1:9")))
            store = f"--storage.tsdb.path={tmp_path / 'prometheus'}"
            with running("prometheus", tmp_path, f"--config.file={config}", store, ready="/-/ready") as prometheus:
                async with plain_client(f"{prometheus}/api/v1") as client:
                    async with plain_client(services["api"].url) as api:
                        await _download_arrives(client, api, str(wanted.run_id))
                    await _metrics_of_the_rules_exist(client)
                    await _rules_are_evaluated_and_quiet(client)


async def _metrics_of_the_rules_exist(client: httpx.AsyncClient) -> None:
    used = set().union(*(metrics_in(rule["expr"]) for rule in rules(*SHIPPED)))
    assert {"up", "refresher_tick_lateness_seconds_bucket", "pg_settings_max_connections"} < used
    used -= {"refresher:download_below_plan:share_of_plan"}  # there only once there is trouble
    used -= {"refresher_download_latency_seconds", "refresher_upload_latency_seconds", "refresher:latency_added_by_load_seconds"}  # http's
    missing = used
    end = time.monotonic() + 30
    while missing := used - set((await client.get("/label/__name__/values")).json()["data"]):
        assert time.monotonic() < end, f"no service, exporter or rule gives {sorted(missing)}"
        await asyncio.sleep(0.1)


async def _rules_are_evaluated_and_quiet(client: httpx.AsyncClient) -> None:
    # the others depend on the machine that the tests run on
    quiet = {
        "ResultsMissing",
        "RunsFailing",
        "DownloadBelowPlan",
        "LatencyUnderLoadHigh",
        "DeadLetters",
        "RecorderWaitsForPostgres",
        "TargetDown",
        "ServiceGone",
    }

    async def so() -> bool:
        found = [rule for group in (await client.get("/rules")).json()["data"]["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in found} == {rule.get("alert") or rule["record"] for rule in rules(*SHIPPED, PLAN)}
        assert not [rule for rule in found if rule.get("lastError")]
        alarmed = {rule["name"] for rule in found if rule.get("state", "inactive") != "inactive"}
        return {rule["health"] for rule in found} == {"ok"} and not alarmed & quiet

    await until(so, 45)


async def _download_arrives(client: httpx.AsyncClient, api: httpx.AsyncClient, run_id: str) -> None:
    async def recorded() -> Any:
        answer = await api.get(f"/api/v1/results/{run_id}")
        return answer.json() if answer.status_code == 200 else None

    result = await until(recorded, 60)
    assert result["status"] == "succeeded", result

    async def scraped() -> bool:
        answer = await client.get(
            "/query", params={"query": 'speedtest_download_bits_per_second{job="api",site="home",engine="speedtest"}'}
        )
        return [float(each["value"][1]) for each in answer.json()["data"]["result"]] == [pytest.approx(result["download_bps"])]

    await until(scraped, 30)
