"""The four services with the users, roles and configuration that are shipped, end to end."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from shared import subjects
from tests.commands import Refresher
from tests.deployed import Bus, Database
from tests.integration.conftest import until
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
    recorder = start("recorder", "recorder", **database.settings("refresher_recorder"))
    api = start("api", "api", **database.settings("refresher_api"))
    start("runner", "runner-home")
    office = start("runner", "runner-office", REFRESHER_SITE="office")

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
    for site in ("home", "office"):
        told = await asyncio.to_thread(run_now, api, site)
        assert "event: progress" in told
        assert "event: result" in told
    owner = await database.connect("refresher")

    async def scheduled() -> bool:
        sql = "SELECT count(DISTINCT site) FROM results WHERE schedule = 'often' AND status = 'succeeded'"
        return bool(await owner.fetchval(sql) == 2)

    await until(scheduled, 30)
    await owner.close()
    assert {each["site"] for each in (await http.get("/runners")).json()["items"]} == {"home", "office"}
    assert (await http.post("/schedules/often/pause")).status_code == 200
    assert (await http.delete("/schedules/often")).status_code == 204
    assert (await http.get("/schedules")).json() == {"items": [], "invalid": []}
    assert scheduler.metric('refresher_ticks_total{outcome="new",trigger="schedule"}') >= 2
    await http.aclose()
    people = Refresher(REFRESHER_API_URL=api.url, REFRESHER_NATS_URL=bus.url, **bus.login("admin"), **database.settings("refresher"))
    doctor = await asyncio.to_thread(people, "doctor")
    assert "failed" not in doctor.stdout
    assert re.search(r"service runner\s+2 running", doctor.stdout)


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
    runner.stop()
    tick = (
        '{"run_id": "00000000-0000-4000-8000-000000000001", "site": "home", "trigger": "manual", "engine": "noop",'
        ' "due_at": "2026-01-01T00:00:00Z", "published_at": "2026-01-01T00:00:00Z", "expires_at": "2036-01-01T00:00:00Z"}'
    )
    await js.publish("refresher.tick.home.manual.run.1", tick.encode())
    subscription = await js.pull_subscribe_bind("runner-home", subjects.TICKS)
    for _ in range(5):
        (message,) = await subscription.fetch(1, timeout=10)
        await message.nak()
    with pytest.raises(TimeoutError):
        await subscription.fetch(1, timeout=0.5)  # the server notices when somebody asks for more
    owner = await database.connect("refresher")

    async def abandoned() -> bool:
        return bool(await owner.fetchval("SELECT true FROM results WHERE failure_kind = 'abandoned'"))

    await until(abandoned)
    await owner.close()
    await admin.close()
