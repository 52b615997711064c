"""Past one machine: three NATS servers, every stream on each of them, and the one that leads killed again and again.

Real processes, real kills (SIGKILL), real load.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import nats
import pytest
from nats.aio.msg import Msg

from services.runner.claims import Claims, Whose
from services.runner.offer import Offer
from shared import subjects
from shared.connect import NATS_AWAY
from shared.events import ANY, Measurement, Result, Status, Tick
from shared.provision import STREAMS, provision
from shared.publish import publish_until_stored
from tests.cluster import Cluster
from tests.integration.conftest import Bus, interval, until
from tests.services import ServiceProcess

SERVICES = ("recorder", "runner", "api", "scheduler")
SCHEDULES = 8


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Start three servers for one test."""
    prepared = Cluster(tmp_path)
    try:
        prepared.start()
        prepared.wait_until_whole()
        yield prepared
    finally:
        prepared.stop()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Bus]:
    """Give a client that goes on with whichever server is there."""

    async def quiet(_: Exception) -> None:
        """A killed server is part of these tests."""

    client = await nats.connect(url.split(","), max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=quiet)
    try:
        yield Bus(client)
    finally:
        await client.close()


async def test_replicas_are_added_to_streams_that_exist_and_never_taken_away(cluster: Cluster) -> None:
    """A system that grows from one server to three keeps its data; a service that was not told of the cluster does no harm."""
    async with connected(cluster.url) as bus:
        for wanted, found in ((1, 1), (3, 3), (1, 3)):
            await provision(bus.js, wanted)
            for stream in STREAMS:
                assert (await bus.js.stream_info(str(stream.name))).config.num_replicas == found


@pytest.mark.timeout(240)  # half a minute as a rule: it waits for elections, which take their time on a machine that has much to do
async def test_of_lines_that_claim_at_once_one_is_first(cluster: Cluster) -> None:
    """Whichever server each of them talks to, and although a server may not have heard yet what another one decided."""
    now = datetime.now(UTC)
    run = {"site": "home", "line": ANY, "trigger": "manual", "engine": "noop", "due_at": now, "published_at": now}
    ticks = [Tick.model_validate({**run, "run_id": uuid4(), "expires_at": now + timedelta(hours=1)}) for _ in range(50)]
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(connected(member.url)) for member in cluster.members]
        await provision(buses[0].js, 3)

        async def whose(line: int, tick: Tick) -> Whose:
            bus = buses[line % len(buses)]
            claims = Claims(lambda: (bus.client, bus.js), f"runner-{line}", ("home", f"line-{line}"), ("noop",), ())
            offer = Offer(tick, Msg(bus.client))

            async def known() -> Whose | None:
                found = await claims.take(offer)
                return None if found is Whose.OPEN else found

            return await until(known)

        found = [await asyncio.gather(*(whose(line, tick) for line in range(6))) for tick in ticks]
    assert [each.count(Whose.OURS) for each in found] == [1] * len(ticks)
    assert [each.count(Whose.ANOTHERS) for each in found] == [5] * len(ticks)


async def test_nothing_is_lost_or_doubled_when_the_leader_is_killed_under_load(
    cluster: Cluster, database_url: str, database: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    """Every tick ends as one row, and so does every result that a server acknowledged, whichever server dies meanwhile."""
    services: list[ServiceProcess] = []
    sent: set[str] = set()
    enough = asyncio.Event()
    async with connected(cluster.url) as bus, asyncio.TaskGroup() as load:
        await provision(bus.js, 3)
        try:
            services += [ServiceProcess(name, tmp_path, cluster.url, database_url, REFRESHER_NATS_REPLICAS="3") for name in SERVICES]
            for service in services:
                service.wait_until_ready(30)
            for number in range(SCHEDULES):
                await bus.put(interval(f"steady-{number}", 1))
            for _ in range(4):
                load.create_task(_send_results(bus, sent, enough))
            for stream in (subjects.TICKS, subjects.RESULTS, subjects.TICKS):
                await _kill_leader(cluster, bus, stream, sent)
            scheduler = services.pop()
            scheduler.stop()
            enough.set()
            expected, stored = await _compare(bus, database, sent)
            for service in services:
                assert service.process.poll() is None, f"{service.name} ended:\n{service.log.read_text()[-2_000:]}"
            assert not await bus.count(subjects.DEAD)
        finally:
            enough.set()
            for service in services:
                service.stop()
    assert stored == expected, f"missing {expected - stored}, doubled {stored - expected}"
    published = _published(scheduler)
    assert published <= set(expected), "a tick that the cluster had acknowledged is gone"
    assert len(published) >= 3 * SCHEDULES
    assert len(sent) >= 100


async def _send_results(bus: Bus, sent: set[str], enough: asyncio.Event) -> None:
    """Publish results as other runners would, one after the other, and note each that was acknowledged."""
    while not enough.is_set():
        now = datetime.now(UTC)
        result = Result(
            run_id=uuid4(),
            site="elsewhere",
            trigger="manual",
            engine="noop",
            due_at=now,
            started_at=now,
            finished_at=now,
            status=Status.SUCCEEDED,
            measurement=Measurement(latency_s=0.01),
        )
        await publish_until_stored(bus.js, subjects.RESULTS, subjects.result("elsewhere", None), result.to_json(), str(result.run_id))
        sent.add(str(result.run_id))
        await asyncio.sleep(0.02)  # as fast as it goes, the load would take the CPU from what it is to try


async def _kill_leader(cluster: Cluster, bus: Bus, stream: str, sent: set[str]) -> None:
    """Kill the server that leads a stream, see that the load goes on without it, and let it come back."""
    await _see_more(bus, sent)
    victim = cluster.member(await until(lambda: _leader(bus, stream)))
    victim.kill()
    await _see_more(bus, sent)
    victim.start()
    await asyncio.to_thread(cluster.wait_until_whole)


async def _see_more(bus: Bus, sent: set[str]) -> None:
    """Wait until new ticks and new results are in their streams."""
    ticks, results = await until(lambda: _ticks(bus)), len(sent)

    async def more() -> bool:
        return len(sent) >= results + 20 and (await _ticks(bus) or 0) >= ticks + SCHEDULES

    await until(more, 30)


async def _ticks(bus: Bus) -> int | None:
    """Return the number of the last tick, or None when nobody can say."""
    with suppress(*NATS_AWAY):
        return (await bus.js.stream_info(subjects.TICKS)).state.last_seq
    return None


async def _leader(bus: Bus, stream: str) -> str | None:
    with suppress(*NATS_AWAY):
        found = (await bus.js.stream_info(stream)).cluster
        return found.leader if found else None
    return None


async def _compare(bus: Bus, database: "asyncpg.Connection[asyncpg.Record]", sent: set[str]) -> tuple["Counter[str]", "Counter[str]"]:
    """Return the runs that are due a row, and those that have one, once nothing is on its way any more.

    An election may take so long that an instant has passed before its tick could be published. Then it has none, and a row that
    says so, as any instant without a scheduler: those are left out here.
    """
    before: tuple[int, int] = (-1, -1)

    async def settled() -> bool:
        nonlocal before
        last, before = before, (await bus.count(subjects.TICKS), await database.fetchval("SELECT count(*) FROM results"))
        await asyncio.sleep(0.5)  # two looks that agree, apart by more than a tick takes
        return last == before and before[1] >= before[0] + len(sent)

    with suppress(AssertionError):  # what is missing then says more than that something is
        await until(settled, 30)
    rows = await database.fetch("SELECT run_id FROM results WHERE failure_kind IS DISTINCT FROM 'scheduler_down'")
    stored = Counter(str(row["run_id"]) for row in rows)
    ticks = Counter(str(json.loads(message.data or b"")["run_id"]) for message in await bus.messages(subjects.TICKS))
    return ticks + Counter(sent), stored


def _published(scheduler: ServiceProcess) -> set[str]:
    """Return the runs whose ticks the scheduler knows to be in the stream."""
    lines = [json.loads(line) for line in scheduler.log.read_text().splitlines()]
    return {line["run_id"] for line in lines if line["action"] == "tick published"}
