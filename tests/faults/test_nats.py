"""The bus under fire: the server dies, stays away, loses a consumer, runs out of disk. Everybody goes on by themselves."""

import asyncio
import random
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from shared import subjects
from tests import ports
from tests.faults.conftest import connected
from tests.faults.disk import mounted
from tests.faults.ledger import Ledger
from tests.faults.scenario import RESTARTS_WITHIN_S, Scenario
from tests.faults.system import System, at_an_instant, running
from tests.faults.usage import watched
from tests.http import plain
from tests.integration.conftest import Bus
from tests.servers import Nats

SERVICES = ("scheduler", "scheduler", "recorder", "runner", "api")


@pytest.mark.timeout(300)
@pytest.mark.scenario("nats-server killed 10 times")
async def test_the_server_is_killed_ten_times(system: System, nats_server: Nats, ledger: Ledger, scenario: Scenario) -> None:
    """Whatever was on its way, acknowledged or not, is there once when it is back."""
    await system.start(*SERVICES)
    await ledger.open("steady-1", "steady-2")
    async with ledger.publishing():
        for _ in range(10):
            await ledger.flowing(20)
            await at_an_instant(random.uniform(0, 0.05))  # amid ticks, results and acknowledgements
            nats_server.kill()
            await asyncio.sleep(random.uniform(0, 2))
            await asyncio.to_thread(nats_server.start)
            scenario.recovered(await ledger.run_after(datetime.now(UTC)))
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


@pytest.mark.waits
@pytest.mark.timeout(400)
@pytest.mark.scenario("nats-server down for 130 s")
async def test_the_server_is_down_for_long(system: System, nats_server: Nats, ledger: Ledger, scenario: Scenario) -> None:
    """Nobody spins, grows or gives up meanwhile, though a client of NATS would by default: after 60 attempts, 2 s apart."""
    await system.start(*SERVICES)
    await ledger.open("steady-1", "steady-2")
    await ledger.flowing(20)
    async with watched(system.services) as spent:
        await asyncio.to_thread(nats_server.kill)
        await asyncio.sleep(130)
    scenario.spent(spent)
    await asyncio.to_thread(nats_server.start)
    scenario.recovered(await ledger.run_after(datetime.now(UTC)))
    await ledger.flowing(20)
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


@pytest.mark.timeout(300)
@pytest.mark.scenario("the consumers of runner and recorder deleted")
async def test_consumers_are_deleted(system: System, bus: Bus, ledger: Ledger, scenario: Scenario) -> None:
    """Whoever used it ends, is started again, and has it made anew: what was recorded before is not recorded twice."""
    await system.start(*SERVICES)
    await ledger.open("steady-1", "steady-2")
    async with system.supervised() as ended:
        for stream, consumer in (
            (subjects.TICKS, subjects.runner_consumer("home")),
            (subjects.RESULTS, subjects.RECORDER),
            (subjects.ADVISORIES, subjects.RECORDER),
        ):
            await ledger.flowing(10)
            deleted_at = datetime.now(UTC)
            await bus.js.delete_consumer(stream, consumer)
            await asyncio.sleep(1)  # what had been handed out is done
            scenario.recovered(1 + await ledger.run_after(max(deleted_at, datetime.now(UTC))), RESTARTS_WITHIN_S)
        scenario.counted(await ledger.account())
    scenario.remark(f"ended and started again: {', '.join(f'{name} {number}' for name, number in ended.items())}")
    scenario.judge()


@pytest.mark.timeout(300)
@pytest.mark.scenario("the disk of nats-server full for 20 s")
async def test_the_disk_of_the_server_is_full(open_directory: Path, database_url: str, scenario: Scenario) -> None:
    """Nothing is acknowledged that is not kept; once there is room, all goes on, and nobody had to do anything.

    A server whose write failed once refuses to write until it is started anew (2.15), and says so in its health: whoever
    supervises it has to look there, as is done here.
    """
    with mounted(open_directory / "disk") as disk:
        server = Nats(disk.path)
        monitor = _monitored(server)
        try:
            async with connected(server.url) as bus, running(System(open_directory, server.url, database_url)) as system:
                await system.start(*SERVICES)
                ledger = Ledger(bus, database_url)
                await ledger.open("steady-1", "steady-2")
                async with system.supervised(), ledger.publishing():
                    await ledger.flowing(50)
                    async with watched(system.services) as spent:
                        disk.fill()
                        await asyncio.sleep(20)
                    scenario.spent(spent)
                    disk.free()
                    freed_at = datetime.now(UTC)
                    await asyncio.to_thread(_restart_if_unwell, server, monitor)
                    scenario.recovered(await ledger.run_after(freed_at), RESTARTS_WITHIN_S)
                    await ledger.flowing(50)
                scenario.counted(await ledger.account())
                system.must_live()
        finally:
            await asyncio.to_thread(server.stop)
    scenario.judge()


def _monitored(server: Nats) -> str:
    """Let a server tell its health, and return where."""
    monitor = f"127.0.0.1:{ports.take()}"
    server.kill()
    server.configuration.write_text(f'{server.configuration.read_text()}http: "{monitor}"\n')
    server.start()
    return f"http://{monitor}/healthz"


def _restart_if_unwell(server: Nats, monitor: str) -> None:
    health = plain.get(monitor, timeout=5)
    if health.status_code != httpx.codes.OK:
        assert "no space left" in health.text
        server.kill()
        server.start()
