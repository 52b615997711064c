"""`refresher doctor`: a system that is well, and each way of breaking it."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from services.cli.checks.database import TABLES
from services.embedded import nats
from services.embedded.program import Program
from shared import subjects
from shared.provision import provision_runner
from shared.publish import publish_until_stored
from tests import ports, servers
from tests.commands import Refresher
from tests.integration.conftest import Bus, Start, interval, until
from tests.servers import Nats, Postgres
from tests.services import ServiceProcess

Findings = dict[str, dict[str, Any]]


@pytest.fixture
def api(bus: Bus, start: Start, database_url: str) -> ServiceProcess:
    """Give a running API on a provisioned server."""
    return start("api", database_url)


@pytest.fixture
def refresher(api: ServiceProcess, nats_server: Nats, database_url: str) -> Refresher:
    """Give the command line of that system; of its services, only the API runs."""
    return Refresher(REFRESHER_API_URL=api.url, REFRESHER_NATS_URL=nats_server.url, REFRESHER_DATABASE_URL=database_url)


async def examine(refresher: Refresher, code: int = 1) -> Findings:
    """Run the doctor and return its findings by name; whatever is not ok must come with an advice."""
    (answer,) = await asyncio.to_thread(refresher.json, "doctor", code=code)
    assert answer["ok"] == (code == 0)
    for finding in answer["findings"]:
        assert (finding["state"] == "ok") == (finding["advice"] is None)
    return {finding["name"]: finding for finding in answer["findings"]}


def states(findings: Findings, *names: str) -> set[str]:
    """Return the states of some findings."""
    return {findings[name]["state"] for name in names}


async def test_a_system_that_is_well(refresher: Refresher, bus: Bus, start: Start, database_url: str) -> None:
    """Everything is named and ok, for people one line each; the exit code is 0."""
    for service in ("scheduler", "runner"):
        start(service)
    start("recorder", database_url)
    await bus.put(interval("hourly", 3600))
    await asyncio.to_thread(refresher, "run-now", "hourly")
    findings = await examine(refresher, code=0)
    assert states(findings, *findings) == {"ok"}
    assert set(findings) == {
        *("nats", "jetstream", "postgres", "migrations", *(f"table {name}" for name in TABLES), "clocks", "api"),
        *("stream TICKS", "stream CLAIMS", "stream RESULTS", "stream DEAD", "stream ADVISORIES"),
        *("bucket refresher-schedules", "bucket refresher-runners", "bucket refresher-lines"),
        *("consumer recorder of RESULTS", "consumer recorder of ADVISORIES", "consumer runner-home of TICKS", "dead letters"),
        *("service scheduler", "service runner", "service recorder", "service api", "schedules", "site home"),
    }
    assert findings["consumer recorder of RESULTS"]["message"] == "0 pending, 0 being worked on, 0 delivered again"
    assert findings["schedules"]["message"] == "1 active, 0 paused"
    assert "newest result due at 20" in findings["table results"]["message"]
    told = (await asyncio.to_thread(refresher, "doctor")).stdout
    assert len(told.splitlines()) == len(findings)
    assert all(line.startswith("ok\t") for line in told.splitlines())
    assert "secret" not in told
    assert "@" not in told  # no password either


async def test_services_that_do_not_run(refresher: Refresher, bus: Bus) -> None:
    """Each is named, with the command that starts it; so are the site without a runner and what it leaves behind."""
    await bus.put(interval("hourly", 3600, sites=("home", "office")))
    await bus.put(interval("paused", 3600, sites=("attic",), enabled=False))
    findings = await examine(refresher)
    assert states(findings, "service scheduler", "service runner", "service recorder") == {"failed"}
    assert findings["service api"]["state"] == "ok"
    assert findings["service scheduler"]["advice"].startswith("start it: refresher run scheduler")
    assert states(findings, "site home", "site office", "consumer runner-office of TICKS") == {"failed"}
    assert findings["site office"]["advice"] == "start one: REFRESHER_SITE=office refresher run runner"
    assert "site attic" not in findings
    assert findings["schedules"]["message"] == "1 active, 1 paused"


async def test_a_runner_without_the_engine(refresher: Refresher, bus: Bus, start: Start) -> None:
    """A schedule whose engine is nowhere installed would only ever fail."""
    start("runner")
    await bus.put(interval("exotic", 3600, engine="teleport"))
    await bus.put(interval("plain", 3600))
    site = (await examine(refresher))["site home"]
    assert site["state"] == "failed"
    assert site["message"].endswith("lacks engines that schedules use: teleport")


async def test_a_site_where_any_line_will_do(refresher: Refresher, bus: Bus, start: Start) -> None:
    """It is well when one of the lines has both the engine and the labels of each such schedule, and says how many there are."""
    await bus.put(interval("either", 3600, line="any", labels=("fast",)))
    name = "site home, any line"
    assert (await examine(refresher))[name]["message"] == "no runner is there"
    for line, label in (("fibre", "fast"), ("lte", "")):
        await provision_runner(bus.js, "home", line)
        start("runner", REFRESHER_LINE=line, REFRESHER_LABELS=label)
    found = await examine(refresher)
    assert (found[name]["state"], found[name]["message"]) == ("ok", "2 lines there")
    assert not [finding for finding in found if "runner-home+any" in finding]
    await bus.put(interval("nowhere", 3600, line="any", labels=("fast", "ipv6")))
    await bus.put(interval("exotic", 3600, line="any", engine="teleport"))
    found = await examine(refresher)
    assert found[name]["message"] == "none of its lines has both engine and labels for: exotic, nowhere"


async def test_a_consumer_or_a_stream_that_is_missing_or_changed(refresher: Refresher, bus: Bus, start: Start) -> None:
    """Deleted or with other settings than it needs: failed, the setting named, and the remedy works."""
    await bus.js.delete_consumer(subjects.RESULTS, subjects.RECORDER)
    await bus.js.delete_stream(subjects.DEAD)
    ticks = (await bus.js.stream_info(subjects.TICKS)).config
    await bus.js.update_stream(ticks.evolve(max_age=60, duplicate_window=60))
    watching = (await bus.js.consumer_info(subjects.ADVISORIES, subjects.RECORDER)).config
    await bus.js.add_consumer(subjects.ADVISORIES, watching.evolve(ack_wait=5))
    broken = ("consumer recorder of RESULTS", "stream DEAD", "stream TICKS", "consumer recorder of ADVISORIES")
    findings = await examine(refresher)
    assert states(findings, *broken) == {"failed"}
    assert [findings[name]["message"] for name in broken] == [
        *("is not there", "is not there"),
        "max_age is 60.0 instead of 172800.0, duplicate_window is 60.0 instead of 120",
        "ack_wait is 5.0 instead of 30",
    ]
    assert states(findings, "stream RESULTS", "bucket refresher-schedules") == {"ok"}
    start("scheduler")
    assert states(await examine(refresher), *broken) == {"ok"}


async def test_a_stream_of_another_kind(refresher: Refresher, bus: Bus) -> None:
    """A stream in memory, or a work queue, made by hand under our name would lose what was acknowledged."""
    config = (await bus.js.stream_info(subjects.DEAD)).config
    await bus.js.delete_stream(subjects.DEAD)
    await bus.js.add_stream(config.evolve(storage="memory", retention="interest"))
    message = (await examine(refresher))["stream DEAD"]["message"]
    assert "storage is memory instead of file" in message
    assert "retention is interest instead of limits" in message


async def test_letters_that_are_dead_and_messages_that_come_again(refresher: Refresher, bus: Bus) -> None:
    """Nothing is broken, and yet somebody should look: warnings."""
    await publish_until_stored(bus.js, subjects.DEAD, subjects.dead("RESULTS"), b"{}", str(uuid4()))
    await publish_until_stored(bus.js, subjects.RESULTS, subjects.result("home", None), b"{}", str(uuid4()))
    reader = await bus.js.pull_subscribe_bind(subjects.RECORDER, subjects.RESULTS)
    await (await reader.fetch(1))[0].nak()
    await reader.fetch(1)
    findings = await examine(refresher)
    assert states(findings, "dead letters", "consumer recorder of RESULTS") == {"warning"}
    assert findings["dead letters"]["message"] == "1 messages could not be used"
    assert findings["consumer recorder of RESULTS"]["message"] == "0 pending, 1 being worked on, 1 delivered again"


async def test_a_value_that_is_no_schedule(refresher: Refresher, bus: Bus) -> None:
    """It is named with the reason; those beside it count."""
    await (await bus.js.key_value(subjects.SCHEDULES)).put("broken", b'{"timing": 1}')
    findings = await examine(refresher)
    assert findings["schedule broken"]["state"] == "failed"
    assert "timing: " in findings["schedule broken"]["message"]
    assert findings["schedules"]["message"] == "nothing is scheduled"


async def test_a_database_without_its_schema(
    api: ServiceProcess, nats_server: Nats, postgres_server: Postgres, database_url: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Migrations pending, tables missing; `refresher migrate` is the remedy, says what it applied, and `--check` changes nothing."""
    name = f"empty_{uuid4().hex}"
    await database.execute(f"CREATE DATABASE {name}")
    try:
        url = postgres_server.database(name)
        refresher = Refresher(REFRESHER_API_URL=api.url, REFRESHER_NATS_URL=nats_server.url, REFRESHER_DATABASE_URL=url)
        findings = await examine(refresher)
        assert states(findings, "migrations", "table results", "table refresher_migrations") == {"failed"}
        assert findings["migrations"]["advice"] == "run `refresher migrate`"
        pending = await asyncio.to_thread(refresher, "migrate", "--check", code=1)
        assert "pending\t0001_results\n" in pending.stdout
        applied = await asyncio.to_thread(refresher, "migrate")
        assert applied.stdout == pending.stdout.replace("pending", "applied")
        assert (await asyncio.to_thread(refresher, "migrate")).stdout == ""
        assert (await asyncio.to_thread(refresher, "migrate", "--check")).stderr == "The schema is up to date.\n"
        assert states(await examine(refresher), "migrations", "table results") == {"ok"}
    finally:
        await database.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_clocks_that_differ(refresher: Refresher, database: "asyncpg.Connection[asyncpg.Record]") -> None:
    """PostgreSQL an hour ahead: rows and runs would not agree."""
    await database.execute(
        "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT now() + interval '1 h' $$"
    )
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    clocks = (await examine(refresher))["clocks"]
    assert clocks["state"] == "warning"
    assert "are 3600." in clocks["message"] or "are 3599." in clocks["message"]


async def test_servers_that_are_away(api: ServiceProcess) -> None:
    """NATS, Postgres and API each for itself: the others are still examined; no password is shown."""
    refresher = Refresher(REFRESHER_NATS_URL="nats://u:secret@127.0.0.1:9", REFRESHER_DATABASE_URL="postgresql://u:secret@127.0.0.1:9/x")
    findings = await examine(refresher)
    assert states(findings, "nats", "postgres", "api") == {"failed"}
    assert list(findings) == ["nats", "postgres", "api"]
    assert "secret" not in str(findings)
    findings = await examine(Refresher(REFRESHER_NATS_URL="nonsense://[", REFRESHER_DATABASE_URL="nonsense", REFRESHER_API_URL="nonsense"))
    assert states(findings, *findings) == {"failed"}
    assert len(findings) == 3


async def test_an_api_that_is_not_ready(refresher: Refresher, bus: Bus, nats_server: Nats) -> None:
    """It answers, but what it needs is away: it says what."""
    await bus.client.close()
    nats_server.kill()

    async def not_ready() -> bool:
        return "is not ready: nats" in (await examine(refresher))["api"]["message"]

    await until(not_ready)
    nats_server.start()


async def test_a_wrong_password(nats_server: Nats) -> None:
    """NATS answers, and refuses: that is not the same as being away."""
    url = nats_server.url.replace("refresher:", "refresher:x")
    findings = await examine(Refresher(REFRESHER_NATS_URL=url))
    assert "refuses the user or the password" in findings["nats"]["message"]


async def test_a_nats_server_without_jetstream(tmp_path: Path) -> None:
    """It answers, but cannot keep anything: told as such, and what hangs on it is left out."""
    port = ports.take()
    plain = Program("nats", (nats.binary(), "--addr", "127.0.0.1", "--port", str(port)), log=tmp_path / "logs" / "plain.log")
    process = servers.start(plain)
    try:
        servers.wait_for_port(port)
        findings = await examine(Refresher(REFRESHER_NATS_URL=f"nats://127.0.0.1:{port}"))
        assert findings["nats"]["state"] == "failed"
        assert "JetStream is off" in findings["nats"]["message"]
        assert "stream TICKS" not in findings
    finally:
        servers.stop(process)
