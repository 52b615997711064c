"""A site with a NATS server of its own, a leaf of the hub: it goes on while the line between them is down."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.cli.checks import fleet
from services.recorder.presence import Presence
from shared import subjects
from shared.due import instants
from shared.events import Result, Tick
from shared.provision import PIN_GROUP, provision
from shared.publish import publish_until_stored
from shared.pull import Pull
from shared.schedules import Schedule
from tests import deployed
from tests.integration.conftest import Bus, interval, until
from tests.leaf import Line, Server, hub, leaf
from tests.services import ServiceProcess

Database = asyncpg.Connection


@pytest.fixture
def center(tmp_path: Path) -> Iterator[tuple[Server, int]]:
    """Start a hub; the port is the one for leaves."""
    server, port = hub(tmp_path / "hub")
    yield server, port
    server.stop()


@pytest.fixture
async def line(center: tuple[Server, int]) -> AsyncIterator[Line]:
    """Give the line between the office and the hub."""
    async with Line(center[1]) as line:
        yield line


@pytest.fixture
def office(tmp_path: Path, line: Line) -> Iterator[Server]:
    """Start the server of the office, as it is shipped."""
    server = leaf(tmp_path / "office", "office", line)
    yield server
    server.stop()


@pytest.fixture
async def bus(center: tuple[Server, int]) -> AsyncIterator[Bus]:
    """Give a client of the hub."""
    client = await nats.connect(center[0].url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    yield Bus(client)
    await client.close()


@pytest.fixture
async def services(
    tmp_path: Path, center: tuple[Server, int], office: Server, database_url: str
) -> AsyncIterator[dict[str, ServiceProcess]]:
    """Run a scheduler and the recorder at the hub, and a scheduler and a runner at the office."""
    started = {
        "hub": ServiceProcess("scheduler", tmp_path, center[0].url, REFRESHER_LEAVES="office"),
        "recorder": ServiceProcess("recorder", tmp_path, center[0].url, database_url),
        "office": ServiceProcess("scheduler", tmp_path, office.url, REFRESHER_LEAF="office"),
        "runner": ServiceProcess("runner", tmp_path, office.url, REFRESHER_SITE="office"),
    }
    for service in started.values():
        await asyncio.to_thread(service.wait_until_ready)
    yield started
    for service in started.values():
        await asyncio.to_thread(service.stop)


async def rows(database: "Database[asyncpg.Record]", schedule: str) -> list[datetime]:
    """Return the instants of a schedule that have a row of a run."""
    found = await database.fetch("SELECT due_at FROM results WHERE schedule = $1 AND started_at IS NOT NULL ORDER BY due_at", schedule)
    return [row["due_at"] for row in found]


async def test_a_site_measures_through_an_outage_of_its_line(
    bus: Bus, line: Line, services: dict[str, ServiceProcess], database: "Database[asyncpg.Record]"
) -> None:
    """Not an instant is missing afterwards and none is there twice; they arrive in the order in which they were measured."""
    schedule = interval("often", 1, sites=("office", "home"))
    await bus.put(schedule)

    async def at_least(count: int) -> bool:
        return len(await rows(database, "often")) >= count

    await until(lambda: at_least(3), 60)
    line.cut()
    before, cut_at = len(await rows(database, "often")), datetime.now(UTC)
    await asyncio.sleep(5)  # this is how long the line is down
    assert len(await rows(database, "often")) <= before + 2
    line.mend()
    await until(lambda: at_least(before + 5), 60)
    await bus.put(schedule.model_copy(update={"enabled": False}))
    mended_at = datetime.now(UTC)
    expected = due(schedule, cut_at - timedelta(seconds=2), mended_at - timedelta(seconds=1))

    async def all_there() -> bool:
        return set(expected) <= set(await rows(database, "often"))

    await until(all_there, 60)
    found = await rows(database, "often")
    assert len(found) == len(set(found))
    arrived = [Result.model_validate_json(message.data) for message in await bus.messages(subjects.RESULTS)]
    instants_in_order = [result.due_at for result in arrived if result.site == "office" and result.started_at]
    assert instants_in_order == sorted(set(instants_in_order))


def due(schedule: Schedule, since: datetime, until: datetime) -> list[datetime]:
    """Return when a schedule was due at the office in a period."""
    return list(takewhile(lambda instant: instant <= until, instants(schedule, "office", since)))


async def test_the_recorder_knows_which_sites_have_servers_of_their_own(
    bus: Bus, center: tuple[Server, int], tmp_path: Path, database_url: str, database: "Database[asyncpg.Record]"
) -> None:
    """By where the results come from: none at first, then as the scheduler was told; the audit is told, too."""
    await provision(bus.js)
    assert (await Presence(1).look(bus.js, datetime.now(UTC))).leaves == set()
    await provision(bus.js, leaves=("office", "attic"))
    assert (await Presence(1).look(bus.js, datetime.now(UTC))).leaves == {"office", "attic"}
    recorder = ServiceProcess("recorder", tmp_path, center[0].url, database_url, REFRESHER_RECORDER_SETTLE_EVERY_S="0.2")
    try:
        await until(lambda: database.fetchval("SELECT leaves = '{attic,office}' FROM ledger_state"), 20)
    finally:
        await asyncio.to_thread(recorder.stop)


async def test_the_hub_sees_the_office_and_can_ask_it(
    bus: Bus, office: Server, services: dict[str, ServiceProcess], database: "Database[asyncpg.Record]"
) -> None:
    """Its runner is in the hub's bucket; a run that is asked for at the hub is done at the office; nothing of other sites goes there."""

    async def seen() -> Any:
        state = (await bus.js.stream_info(f"KV_{subjects.RUNNERS}", subjects_filter=">")).state
        return [key for key in state.subjects or {} if ".office." in key]

    await until(seen, 60)
    now = datetime.now(UTC)
    for site in ("office", "home"):
        fields = {"run_id": uuid4(), "site": site, "trigger": "manual", "engine": "noop", "due_at": now, "published_at": now}
        tick = Tick.model_validate({**fields, "expires_at": now + timedelta(minutes=10)})
        subject = subjects.manual_tick(site, None, tick.run_id)
        await publish_until_stored(bus.js, subjects.TICKS, subject, tick.to_json(), str(tick.run_id))

    async def measured() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM results WHERE site = 'office' AND status = 'succeeded'"))

    await until(measured, 60)
    there = await nats.connect(office.url)
    stored = await Bus(there).messages(subjects.TICKS)
    await there.close()
    assert [Tick.model_validate_json(message.data).site for message in stored] == ["office"]


async def test_a_tick_that_no_runner_at_the_office_finished_is_a_failed_row(
    bus: Bus, office: Server, services: dict[str, ServiceProcess], database: "Database[asyncpg.Record]"
) -> None:
    """The server there gives up on it; nobody at the hub hears of that, so the scheduler there says it in a result."""
    await asyncio.to_thread(services["runner"].stop)
    client = await nats.connect(office.url)
    now = datetime.now(UTC)
    fields = {"run_id": uuid4(), "site": "office", "trigger": "manual", "engine": "noop", "due_at": now, "published_at": now}
    tick = Tick.model_validate({**fields, "expires_at": now + timedelta(minutes=10)})
    await client.jetstream().publish(subjects.manual_tick("office", None, tick.run_id), tick.to_json())

    async def refuse() -> None:
        async with Pull(client, client.jetstream(), subjects.TICKS, "runner-office", batch=1, group=PIN_GROUP) as pull:
            while True:
                for message in await pull.next():
                    await message.nak()

    async def failed() -> bool:
        return bool(await database.fetchval("SELECT true FROM results WHERE site = 'office' AND failure_kind = 'abandoned'"))

    refusing = asyncio.create_task(refuse())
    try:
        await until(failed, 45)
    finally:
        refusing.cancel()
        await asyncio.wait([refusing])
        await client.close()


async def test_a_hub_is_told_of_its_leaves_once(bus: Bus, center: tuple[Server, int], tmp_path: Path) -> None:
    """A second scheduler with the same leaves changes nothing; one with another leaf adds it."""
    for leaves, expected in (("office", ["office"]), ("office", ["office"]), ("attic, office", ["attic", "office"])):
        scheduler = ServiceProcess("scheduler", tmp_path, center[0].url, REFRESHER_LEAVES=leaves)
        await asyncio.to_thread(scheduler.wait_until_ready)
        sources = (await bus.js.stream_info(subjects.RESULTS)).config.sources or []
        assert sorted(source.external.api for source in sources if source.external) == [f"$JS.{each}.API" for each in expected]
        await asyncio.to_thread(scheduler.stop)


async def test_the_doctor_looks_for_a_leaf_where_it_is(bus: Bus, line: Line, office: Server) -> None:
    """It looks for no consumer of its runners at the hub, and says whether its server answers."""
    await provision(bus.js, leaves=("office",))
    await bus.put(interval("often", 3600, sites=("office", "home")))

    async def found() -> dict[str, str]:
        return {each.name: each.state async for each in fleet.check(bus.client)}

    async def answers() -> bool:
        return (await found())["server of site office"] == "ok"

    await until(answers, 60)
    assert {name for name in await found() if name.startswith("consumer")} == {"consumer runner-home of TICKS"}
    line.cut()
    assert (await found())["server of site office"] == "failed"


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[deployed.Bus]:
    """Start a hub as it is shipped, with users for the leaves office and attic."""
    bus = deployed.Bus(tmp_path / "hub")
    for site in ("office", "attic"):
        made = deployed.make_secrets(bus.secrets, "leaf", site)
        assert made.returncode == 0, made.stderr
    bus.reload()
    yield bus
    bus.stop()


@pytest.fixture
async def admin(shipped: deployed.Bus, tmp_path: Path) -> AsyncIterator[Client]:
    """Give the person at the hub, whose scheduler fetches from office and attic."""
    scheduler = ServiceProcess("scheduler", tmp_path, shipped.url, **shipped.login("scheduler"), REFRESHER_LEAVES="office,attic")
    await asyncio.to_thread(scheduler.wait_until_ready)
    client = await shipped.connect("admin")
    yield client
    await client.close()
    await asyncio.to_thread(scheduler.stop)


@asynccontextmanager
async def leaf_of(shipped: deployed.Bus, site: str, directory: Path, scheduler: bool = False) -> AsyncIterator[tuple[Bus, Line]]:
    """Start the server of a site as it is shipped, over TLS, and give a client of it and its line to the hub."""
    async with Line(shipped.leaves) as line:
        server = await asyncio.to_thread(leaf, directory / site, site, line, shipped.secrets / f"leaf-{site}")
        client = await nats.connect(server.url)
        try:
            there = Bus(client)
            if scheduler:
                service = ServiceProcess("scheduler", directory, server.url, REFRESHER_LEAF=site)
                await asyncio.to_thread(service.wait_until_ready)
                await asyncio.to_thread(service.stop)
            else:
                await provision(there.js, leaf=site)
            yield there, line
        finally:
            await client.close()
            await asyncio.to_thread(server.stop)


async def stored(client: Client, stream: str) -> dict[str, int]:
    """Return how many messages of each subject a stream holds."""
    return (await client.jetstream().stream_info(stream, subjects_filter=">")).state.subjects or {}


async def test_a_leaf_works_with_its_own_user_and_may_no_more(shipped: deployed.Bus, admin: Client, tmp_path: Path) -> None:
    """With the shipped configurations, over TLS: what is fetched either way arrives; what the leaf asks for besides is not done."""
    async with leaf_of(shipped, "office", tmp_path) as (there, _):
        schedule = interval("often", 3600, sites=("office",))
        await admin.jetstream().publish(f"$KV.{subjects.SCHEDULES}.often", schedule.model_dump_json().encode())
        await admin.jetstream().publish("refresher.tick.office.manual.run.1", b"asked for")

        async def down() -> bool:
            names = (f"KV_{subjects.SCHEDULES}", subjects.TICKS)
            return [await there.count(name) for name in names] == [1, 1]

        await until(down, 60)
        await there.js.publish("refresher.result.office.often", b"measured", headers={"Nats-Msg-Id": "1"})
        await until(lambda: stored(admin, subjects.RESULTS), 60)
        before = await _state(admin)
        for subject in FORBIDDEN:
            with pytest.raises(nats.errors.Error):
                await there.client.request(subject, b"{}", timeout=0.3)
        for target in ("$JS.API.STREAM.DELETE.DEAD", "refresher.result.home.often", "refresher.tick.home.often.1"):
            await there.client.publish("$JS.hub.API.CONSUMER.RESET.TICKS.leaf-office", b"", reply=target)
            await there.client.publish(target, b"{}")
        with pytest.raises(nats.errors.Error):  # after all of these on the same connection
            await there.client.request("$JS.hub.API.STREAM.LIST", b"{}", timeout=0.5)
        assert await _state(admin) == before


async def test_a_leaf_speaks_for_its_own_site_alone(shipped: deployed.Bus, admin: Client, tmp_path: Path) -> None:
    """What it puts into its own streams in the name of another site, or of the hub's recorder, stays there."""
    own = {
        subjects.RESULTS: "refresher.result.office.often",
        subjects.DEAD: "refresher.dead.ticks",
        f"KV_{subjects.RUNNERS}": f"$KV.{subjects.RUNNERS}.office.one",
        subjects.ADVISORIES: None,
    }
    async with leaf_of(shipped, "office", tmp_path) as (there, _):
        for subject in (
            *("refresher.result.home.often", "refresher.result.attic.often", "refresher.result.officer.often"),
            *("refresher.dead.results", "refresher.dead.advisories"),
            *(f"$KV.{subjects.RUNNERS}.home.one", f"$KV.{subjects.RUNNERS}.attic.one"),
            subjects.EXHAUSTED.replace(">", "runner-home"),
        ):
            await there.js.publish(subject, b"forged")
        for each in own.values():
            if each:
                await there.js.publish(each, b"true")

        async def arrived() -> bool:
            return all([await stored(admin, stream) for stream, subject in own.items() if subject])

        await until(arrived, 60)
        assert {stream: list(await stored(admin, stream)) for stream in own} == {name: [each] if each else [] for name, each in own.items()}


async def test_leaves_do_not_hear_each_other(shipped: deployed.Bus, admin: Client, tmp_path: Path) -> None:
    """Who hears everything at the server of one site hears nothing of another one: neither its ticks nor its results."""
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    async with leaf_of(shipped, "office", tmp_path) as (office, _), leaf_of(shipped, "attic", tmp_path) as (attic, _):
        for pattern in (">", "$JS.>", "$JSC.>", "_R_.>"):
            await office.client.subscribe(pattern, cb=hear)
        await office.client.flush()
        for site, there in (("attic", attic), ("office", office)):
            await admin.jetstream().publish(f"refresher.tick.{site}.manual.run.1", f"tick of {site}".encode())
            await there.js.publish(f"refresher.result.{site}.often", f"result of {site}".encode())
            await there.js.publish(f"$KV.{subjects.RUNNERS}.{site}.one", f"runner of {site}".encode())

        async def exchanged() -> bool:
            there = [await office.count(subjects.TICKS), await attic.count(subjects.TICKS)] == [1, 1]
            return there and all([len(await stored(admin, name)) == 2 for name in (subjects.RESULTS, f"KV_{subjects.RUNNERS}")])

        await until(exchanged, 60)
    assert b"tick of office" in heard
    assert not [data for data in heard if b"attic" in data]


async def test_what_waited_is_fetched_soon_after_a_long_outage(shipped: deployed.Bus, admin: Client, tmp_path: Path) -> None:
    """The hub's scheduler begins again as soon as the leaf can be reached; the servers would let half a minute to two pass."""
    async with leaf_of(shipped, "office", tmp_path) as (there, line):
        await there.js.publish("refresher.result.office.often", b"before")
        await until(lambda: stored(admin, subjects.RESULTS), 60)
        line.cut()
        for number in range(2000):  # more than goes out before the hub says that it has come
            await there.client.publish("refresher.result.office.often", f"{number} {'x' * 1000}".encode())
        await asyncio.sleep(20)  # this is how long the line is down
        line.mend()

        async def all_there() -> bool:
            return (await stored(admin, subjects.RESULTS)).get("refresher.result.office.often") == 2001

        await until(all_there, 15)
        await asyncio.sleep(3)  # would something come twice, it would by now
        assert await all_there()


async def test_each_stream_is_fetched_again_by_itself(shipped: deployed.Bus, admin: Client, tmp_path: Path) -> None:
    """A stream that hears nothing of a leaf is helped, though another one hears it well."""
    async with leaf_of(shipped, "office", tmp_path) as (there, _):
        await there.js.publish("refresher.result.office.often", b"measured")
        await until(lambda: stored(admin, subjects.RESULTS), 60)
        config = (await admin.jetstream().stream_info(subjects.DEAD)).config
        await admin.jetstream().update_stream(replace(config, sources=[]))
        await there.js.publish("refresher.dead.ticks", b"{}")
        await until(lambda: stored(admin, subjects.DEAD), 15)


async def test_a_leaf_that_lost_its_disk_gets_all_schedules_again(shipped: deployed.Bus, admin: Client, tmp_path: Path) -> None:
    """Those included that it had before; of the ticks that were asked for it gets what it was not handed yet."""

    async def more(number: int) -> None:
        await admin.jetstream().publish(f"$KV.{subjects.SCHEDULES}.often-{number}", b"{}")
        await admin.jetstream().publish(f"refresher.tick.office.manual.run.{number}", b"asked for")

    await more(1)
    for disk, schedules, ticks in (("first", 1, 1), ("second", 3, 1)):
        (tmp_path / disk).mkdir()
        async with leaf_of(shipped, "office", tmp_path / disk, scheduler=True) as (there, _):

            async def has(*counts: int, there: Bus = there) -> bool:
                return (await there.count(f"KV_{subjects.SCHEDULES}"), await there.count(subjects.TICKS)) == counts

            await until(lambda has=has, counts=(schedules, ticks): has(*counts), 60)  # type: ignore[misc]
            await more(schedules + 1)
            await until(lambda has=has, counts=(schedules + 1, ticks + 1): has(*counts), 60)  # type: ignore[misc]
            await asyncio.sleep(2)  # until it has said that they have come
        await more(schedules + 2)


FORBIDDEN = (
    *("$JS.hub.API.STREAM.DELETE.TICKS", "$JS.hub.API.STREAM.PURGE.RESULTS", "$JS.hub.API.STREAM.CREATE.MINE", "$JS.hub.API.STREAM.LIST"),
    *("$JS.hub.API.STREAM.MSG.GET.RESULTS", "$JS.hub.API.CONSUMER.CREATE.RESULTS.mine", "$JS.hub.API.CONSUMER.DELETE.RESULTS.recorder"),
    *("$JS.hub.API.CONSUMER.CREATE.TICKS.mine.refresher.tick.home.>", "$JS.hub.API.CONSUMER.MSG.NEXT.TICKS.runner-home"),
    *("$JS.hub.API.CONSUMER.CREATE.KV_refresher-schedules", "$JS.hub.API.CONSUMER.CREATE.TICKS.mine.refresher.tick.office.*.run.*"),
    *("$JS.hub.API.CONSUMER.RESET.TICKS.leaf-attic", "$JS.hub.API.CONSUMER.INFO.TICKS.leaf-attic", "$JS.attic.API.CONSUMER.CREATE.RESULTS"),
    *("refresher-dead-letters.list", "refresher-options.home.noop"),
)
"""What the server of a site may not ask the hub for."""


async def _state(admin: Client) -> dict[str, tuple[int, int, int]]:
    streams = await admin.jetstream().streams_info()
    return {str(each.config.name): (each.state.last_seq, each.state.messages, each.state.consumer_count) for each in streams}
