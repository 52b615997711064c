"""Three servers: the one that leads dies again and again, and one is cut off from the others."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from shared import subjects
from shared.connect import NATS_AWAY
from shared.provision import provision
from tests.cluster import Cluster
from tests.faults.conftest import connected
from tests.faults.ledger import Ledger
from tests.faults.scenario import REJOINS_WITHIN_S, Scenario
from tests.faults.system import System, running
from tests.integration.conftest import Bus, until

SERVICES = ("scheduler", "scheduler", "recorder", "runner")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Give three servers."""
    prepared = Cluster(tmp_path)
    try:
        await asyncio.to_thread(prepared.start)
        await asyncio.to_thread(prepared.wait_until_whole)
        yield prepared
    finally:
        for member in prepared.members:
            if member.process:
                member.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(prepared.stop)


async def _leader(bus: Bus, stream: str) -> str | None:
    with suppress(*NATS_AWAY):
        found = (await bus.js.stream_info(stream)).cluster
        return found.leader if found else None
    return None


@pytest.mark.timeout(420)
@pytest.mark.scenario("cluster of three: the leader killed 8 times")
async def test_the_leader_is_killed_eight_times(cluster: Cluster, database_url: str, tmp_path: Path, scenario: Scenario) -> None:
    """Of every stream in turn: what was acknowledged is on another server, and what was not is published again."""
    async with connected(cluster.url) as bus, running(System(tmp_path, cluster.url, database_url)) as system:
        await provision(bus.js, 3)
        await system.start(*SERVICES, REFRESHER_NATS_REPLICAS="3")
        ledger = Ledger(bus, database_url)
        await ledger.open("steady-1", "steady-2")
        elections: list[float] = []
        async with ledger.publishing():
            for number in range(8):
                await ledger.flowing(20)
                stream = (subjects.TICKS, subjects.RESULTS)[number % 2]
                victim = cluster.member(await until(lambda stream=stream: _leader(bus, stream)))  # type: ignore[misc]
                victim.kill()
                killed_at, elected = datetime.now(UTC), asyncio.create_task(_all_led(bus, victim.name))
                after_s = await ledger.run_after(killed_at)
                led_s = (await elected - killed_at).total_seconds()
                elections.append(led_s)
                scenario.recovered(max(0.0, after_s - led_s), REJOINS_WITHIN_S)
                await asyncio.to_thread(victim.start)
                await asyncio.to_thread(cluster.wait_until_whole, 60)
        scenario.remark(f"all led again {median(elections):.1f} s after the kill (median; the longest {max(elections):.1f} s)")
        scenario.counted(await ledger.account())
        system.must_live()
    scenario.judge()


async def _all_led(bus: Bus, dead: str) -> datetime:
    """Wait until every stream and consumer on the way from tick to row has a leader that lives, and return when that was."""
    return max(
        await asyncio.gather(
            *(
                _led(look, dead)
                for look in (
                    lambda: bus.js.stream_info(subjects.TICKS),
                    lambda: bus.js.stream_info(subjects.RESULTS),
                    lambda: bus.js.stream_info(f"KV_{subjects.LINES}"),
                    lambda: bus.js.consumer_info(subjects.TICKS, subjects.runner_consumer("home")),
                    lambda: bus.js.consumer_info(subjects.RESULTS, subjects.RECORDER),
                )
            )
        )
    )


async def _led(look: Callable[[], Awaitable[Any]], dead: str) -> datetime:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(*NATS_AWAY):
            found = (await asyncio.wait_for(look(), 0.5)).cluster
            if found and found.leader not in {None, dead}:
                return datetime.now(UTC)
        await asyncio.sleep(0.1)
    raise AssertionError("no leader was elected")


# a client that was connected to a frozen server leaves a socket behind, which nobody but the garbage collector closes
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(300)
@pytest.mark.scenario("cluster of three: the leader cut off for 20 s, twice")
async def test_the_leader_is_cut_off(cluster: Cluster, database_url: str, tmp_path: Path, scenario: Scenario) -> None:
    """A server that is frozen answers nobody and closes nothing: the others choose a new leader, and clients leave it by themselves."""
    async with connected(cluster.url) as bus, running(System(tmp_path, cluster.url, database_url)) as system:
        await provision(bus.js, 3)
        await system.start(*SERVICES, REFRESHER_NATS_REPLICAS="3")
        ledger = Ledger(bus, database_url)
        await ledger.open("steady-1", "steady-2")
        async with ledger.publishing():
            for stream in (subjects.TICKS, subjects.RESULTS):
                await ledger.flowing(20)
                victim = cluster.member(await until(lambda stream=stream: _leader(bus, stream)))  # type: ignore[misc]
                assert victim.process
                victim.process.send_signal(signal.SIGSTOP)
                cut_at = datetime.now(UTC)
                scenario.remark(f"went on {await ledger.run_after(cut_at):.1f} s after the cut")
                await asyncio.sleep(max(0.0, 20 - (datetime.now(UTC) - cut_at).total_seconds()))
                victim.process.send_signal(signal.SIGCONT)
                scenario.recovered(await ledger.run_after(datetime.now(UTC)), REJOINS_WITHIN_S)
                await asyncio.to_thread(cluster.wait_until_whole, 60)
        scenario.counted(await ledger.account())
        system.must_live()
    scenario.judge()
