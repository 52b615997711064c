"""The four services with the users, roles and configuration that are shipped, end to end."""

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from services.embedded.nats import binary
from shared import subjects
from shared.provision import MAX_DELIVERIES, PIN_GROUP
from shared.pull import Pull
from tests.commands import Refresher
from tests.deployed import DEPLOY, Bus, Database, make_secrets
from tests.integration.conftest import until
from tests.leaf import configuration as leaf_configuration
from tests.servers import port_of
from tests.services import ServiceProcess

Start = Callable[..., ServiceProcess]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """Start a nats-server as it is shipped, with the sites home and office; afterwards its log has no complaint."""
    server = Bus(tmp_path)
    yield server
    server.stop()
    complaints = [line for line in server.log.read_text().splitlines() if re.search(r"\[(ERR|FTL)\]|Violation", line)]
    # wait_for_port knocks and says nothing
    assert not [line for line in complaints if "TLS handshake error: EOF" not in line]


@pytest.fixture
async def database(open_directory: Path, bus: Bus) -> AsyncIterator[Database]:
    """Start a PostgreSQL with the roles that are shipped, and an empty database."""
    server = Database(open_directory, bus.secrets)
    await server.make_roles()
    yield server
    server.stop()


@pytest.fixture
def start(bus: Bus, tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a service with a user's login and does not wait for it."""
    started: list[ServiceProcess] = []

    def start(name: str, user: str, **environment: str) -> ServiceProcess:
        service = ServiceProcess(name, tmp_path, bus.url, **{**bus.login(user), **environment})
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()


def run_now(api: ServiceProcess, site: str) -> str:
    """Ask for a run, wait for its row, and return the events that the API told meanwhile."""
    with httpx.Client(base_url=api.url, timeout=60) as client:
        answer = client.post("/api/v1/runs?wait=true&timeout_s=50", json={"engine": "noop", "site": site, "options": {"seconds": 1}})
    assert answer.status_code == 202
    return answer.text


async def test_each_service_works_with_its_own_user(bus: Bus, database: Database, start: Start) -> None:
    """In whatever order they start, each waits for what others make; then ticks of both kinds end as rows, at two sites.

    Everything that a service ever asks the servers for is asked here: nothing is refused.
    """
    soon = {"REFRESHER_RECORDER_SETTLE_EVERY_S": "1", "REFRESHER_RECORDER_SETTLE_AFTER_S": "2"}
    recorder = start("recorder", "recorder", **database.settings("refresher_recorder"), **soon)
    api = start("api", "api", **database.settings("refresher_api"))
    start("runner", "runner-home")
    office = start("runner", "runner-office", **bus.remote("office"))

    async def waiting() -> bool:
        return all('"action": "waiting"' in service.log.read_text() for service in (recorder, api, office))

    await until(waiting)
    scheduler = start("scheduler", "scheduler").wait_until_ready()

    async def waits_for_the_owner() -> bool:
        return "`refresher migrate` as its owner does" in recorder.log.read_text()

    await until(waits_for_the_owner)
    migrate = Refresher(**database.settings("refresher"))("migrate")
    assert "0002_roles" in migrate.stdout
    for service in (recorder, api, office):
        service.wait_until_ready()

    every = {"name": "often", "engine": "noop", "sites": ["home", "office"], "timing": {"kind": "interval", "every_s": 5}}
    http = httpx.AsyncClient(base_url=f"{api.url}/api/v1", timeout=10)
    assert (await http.post("/schedules", json=every)).status_code == 201
    refused = await http.post("/schedules", json={**every, "name": "wrong", "options": {"second": 1}})
    assert [error["field"] for error in refused.json()["errors"]] == ["options.second"], "the runner was asked"
    for site in ("home", "office"):
        told = await asyncio.to_thread(run_now, api, site)
        assert "event: progress" in told
        assert "event: result" in told
    owner = await database.connect("refresher")

    async def scheduled() -> bool:
        sql = "SELECT count(DISTINCT site) FROM results WHERE schedule = 'often' AND status = 'succeeded'"
        return bool(await owner.fetchval(sql) == 2)

    await until(scheduled, 30)
    nowhere = {**every, "name": "nowhere", "sites": ["attic"], "start_within_s": 1}
    assert (await http.post("/schedules", json=nowhere)).status_code == 201
    missed = "SELECT true FROM results WHERE site = 'attic' AND status = 'missed' AND failure_kind = 'no_runner'"
    await until(lambda: owner.fetchval(missed), 30)
    assert (await http.delete("/schedules/nowhere")).status_code == 204
    await owner.close()
    assert {each["site"] for each in (await http.get("/runners")).json()["items"]} == {"home", "office"}
    assert (await http.post("/schedules/often/pause")).status_code == 200
    assert (await http.delete("/schedules/often")).status_code == 204
    assert (await http.get("/schedules")).json() == {"items": [], "invalid": []}
    assert scheduler.metric('refresher_ticks_total{outcome="new",trigger="schedule"}') >= 2
    await http.aclose()
    people = Refresher(REFRESHER_API_URL=api.url, REFRESHER_NATS_URL=bus.url, **bus.login("admin"), **database.settings("refresher"))
    audit = await asyncio.to_thread(people.json, "audit")
    assert audit[0]["due"] >= 5
    doctor = await asyncio.to_thread(people, "doctor")
    assert "failed" not in doctor.stdout
    assert re.search(r"service runner\s+2 running", doctor.stdout)


@pytest.mark.parametrize("site", ["office", "42", "5g", "10gb", "on", "true", "3-5"])
def test_the_server_of_a_site_takes_its_configuration(site: str, tmp_path: Path) -> None:
    """As compose.leaf.yml starts it, whatever the name of the site reads as."""
    secrets = tmp_path / "secrets"
    assert make_secrets(secrets, "leaf", site).returncode == 0
    credential = secrets / f"leaf-{site}"
    (tmp_path / "leaf.conf").write_text(leaf_configuration(tmp_path, 4222, credential))
    shell, option, command = yaml.safe_load((DEPLOY / "compose.leaf.yml").read_text())["services"]["nats"]["command"]
    for shipped, here in {
        "exec nats-server": f"exec {binary()} -t",
        "/etc/nats/leaf.conf": str(tmp_path / "leaf.conf"),
        "/run/secrets": str(credential),
        "$$": "$",
    }.items():
        assert shipped in command, shipped
        command = command.replace(shipped, here)
    environment = {"PATH": os.environ["PATH"], "REFRESHER_SITE": site, "REFRESHER_HUB": "speed.example.org:7422"}
    checked = subprocess.run([shell, option, command], env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert not re.search("error|warning|deprecated", checked.stderr, re.IGNORECASE), checked.stderr


async def test_a_handshake_that_fails_is_tried_again(bus: Bus, start: Start) -> None:
    """A line that breaks off while TLS begins, as under a bus that starts again, is no reason to wait for ever."""
    attempts = 0
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
        sink.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 2:
            await reader.read(1)
            writer.close()
            return
        there = await asyncio.open_connection("127.0.0.1", port_of(bus.url))
        pipes.update({asyncio.create_task(pipe(reader, there[1])), asyncio.create_task(pipe(there[0], writer))})

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as proxy:
        address = f"tls://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        scheduler = start("scheduler", "scheduler", REFRESHER_NATS_URL=address)
        await asyncio.to_thread(scheduler.wait_until_ready)
        assert f'"what": "NATS at {address}"' in scheduler.log.read_text()
        await asyncio.to_thread(scheduler.stop)
        await asyncio.wait(pipes)
    assert attempts >= 3


async def test_the_ways_that_are_seldom_taken(bus: Bus, database: Database, start: Start) -> None:
    """Dead letters of the runner and of the recorder, and a tick that nobody finishes: their users may do this too."""
    Refresher(**database.settings("refresher"))("migrate")
    start("scheduler", "scheduler").wait_until_ready()
    start("recorder", "recorder", **database.settings("refresher_recorder")).wait_until_ready()
    runner = start("runner", "runner-home").wait_until_ready()
    admin = await bus.connect("admin")
    js = admin.jetstream()

    async def dead(number: int) -> bool:
        return (await js.stream_info(subjects.DEAD)).state.messages == number

    await js.publish("refresher.tick.home.garbage.1", b"no tick")
    await until(lambda: dead(1))
    await js.publish("refresher.result.home.garbage", b"no result")
    await until(lambda: dead(2))
    await looked_after(start("api", "api", **database.settings("refresher_api")).wait_until_ready())
    await until(lambda: dead(1))
    runner.stop()
    tick = (
        '{"run_id": "00000000-0000-4000-8000-000000000001", "site": "home", "trigger": "manual", "engine": "noop",'
        ' "due_at": "2026-01-01T00:00:00Z", "published_at": "2026-01-01T00:00:00Z", "expires_at": "2036-01-01T00:00:00Z"}'
    )
    await js.publish("refresher.tick.home.manual.run.1", tick.encode())
    async with Pull(admin, js, subjects.TICKS, "runner-home", batch=1, group=PIN_GROUP) as pull:
        for _ in range(MAX_DELIVERIES):
            (message,) = await asyncio.wait_for(pull.next(), 10)
            await message.nak()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pull.next(), 0.5)  # the server notices when somebody asks for more
    owner = await database.connect("refresher")

    async def abandoned() -> bool:
        return bool(await owner.fetchval("SELECT true FROM results WHERE failure_kind = 'abandoned'"))

    await until(abandoned)
    await until(lambda: owner.fetchval("SELECT results_sequence > 0 FROM ledger_state"), 20)
    async with owner.transaction():  # the database is put back to an earlier state
        await owner.execute("DELETE FROM results")
        await owner.execute("UPDATE ledger_state SET results_sequence = 0")
    await until(abandoned, 30)
    await owner.close()
    await admin.close()


async def looked_after(api: ServiceProcess) -> None:
    """Look at the dead letters, publish that of the recorder again, and drop that as well when it is back."""
    async with httpx.AsyncClient(base_url=f"{api.url}/api/v1", timeout=10) as http:
        tick, result = (await http.get("/dead")).json()["items"]
        assert (tick["stream"], result["subject"]) == ("TICKS", "refresher.result.home.garbage")
        assert (await http.get(f"/dead/{tick['sequence']}")).json()["content"] == "no tick"
        assert (await http.post(f"/dead/{tick['sequence']}/redrive")).status_code == 409
        assert (await http.post(f"/dead/{result['sequence']}/redrive")).status_code == 200

        async def back() -> int | None:
            items = (await http.get("/dead", params={"after": result["sequence"]})).json()["items"]
            return items[0]["sequence"] if items else None

        assert (await http.delete(f"/dead/{await until(back)}")).status_code == 204
