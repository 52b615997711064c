"""The database under fire: it dies, runs out of disk, is slow. Results wait on the bus, and none is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from shared.migrate import migrate
from tests.faults.disk import mounted
from tests.faults.ledger import Ledger
from tests.faults.scenario import RESTARTS_WITHIN_S, Scenario
from tests.faults.system import System, running
from tests.faults.usage import watched
from tests.integration.conftest import Bus
from tests.servers import Nats, Postgres

SERVICES = ("scheduler", "recorder", "runner", "api")


@pytest.fixture
async def server(open_directory: Path) -> AsyncIterator[Postgres]:
    """Give a PostgreSQL of this test's own."""
    started = await asyncio.to_thread(Postgres, open_directory)
    await _migrate(started)
    yield started
    await asyncio.to_thread(started.stop)


async def _migrate(server: Postgres) -> None:
    connection = await asyncpg.connect(server.url)
    await migrate(connection)
    await connection.close()


@pytest.mark.timeout(300)
@pytest.mark.scenario("PostgreSQL killed 5 times, each time gone for 8 s")
async def test_the_database_is_killed(server: Postgres, bus: Bus, nats_server: Nats, tmp_path: Path, scenario: Scenario) -> None:
    """The recorder asks again until it is there; what was committed and not acknowledged comes again, and is there once."""
    async with running(System(tmp_path, nats_server.url, server.url)) as system:
        await system.start(*SERVICES)
        ledger = Ledger(bus, server.url)
        await ledger.open("steady-1", "steady-2")
        async with ledger.publishing():
            for _ in range(5):
                await ledger.flowing(20)
                async with watched(system.services) as spent:
                    await asyncio.to_thread(server.kill)
                    await asyncio.sleep(8)
                scenario.spent(spent)
                await asyncio.to_thread(server.start)
                scenario.recovered(await ledger.row_after(datetime.now(UTC)))
        scenario.counted(await ledger.account())
        system.must_live()
    scenario.judge()


@pytest.mark.waits
@pytest.mark.timeout(500)
@pytest.mark.scenario("PostgreSQL down for 5 minutes")
async def test_the_database_is_down_for_five_minutes(
    server: Postgres, bus: Bus, nats_server: Nats, tmp_path: Path, scenario: Scenario
) -> None:
    """Measuring goes on as if nothing were; all results wait on the bus, and nobody spins, grows or gives up."""
    async with running(System(tmp_path, nats_server.url, server.url)) as system:
        await system.start(*SERVICES)
        ledger = Ledger(bus, server.url)
        await ledger.open("steady-1", "steady-2")
        await ledger.flowing(20)
        async with watched(system.services) as spent:
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(300)
        scenario.spent(spent)
        await asyncio.to_thread(server.start)
        scenario.recovered(await ledger.row_after(datetime.now(UTC)))
        scenario.counted(await ledger.account())
        system.must_live()
    scenario.judge()


@pytest.mark.timeout(300)
@pytest.mark.scenario("the disk of PostgreSQL full for 20 s")
async def test_the_disk_of_the_database_is_full(
    bus: Bus, nats_server: Nats, open_directory: Path, tmp_path: Path, scenario: Scenario
) -> None:
    """It refuses, or ends and has to be started again: results wait meanwhile, and none is taken for one that can never be stored."""
    with mounted(open_directory / "disk") as disk:
        server = await asyncio.to_thread(Postgres, disk.path)
        try:
            await _migrate(server)
            async with running(System(tmp_path, nats_server.url, server.url)) as system:
                await system.start(*SERVICES)
                ledger = Ledger(bus, server.url)
                await ledger.open("steady-1", "steady-2")
                async with ledger.publishing():
                    await ledger.flowing(20)
                    async with watched(system.services) as spent:
                        disk.fill()
                        await asyncio.sleep(20)
                    scenario.spent(spent)
                    ended = server.process.poll() is not None
                    disk.free()
                    freed_at = datetime.now(UTC)
                    if ended:  # as its supervisor would
                        scenario.remark("the server had ended")
                        await asyncio.to_thread(server.start)
                    scenario.recovered(await ledger.row_after(freed_at), RESTARTS_WITHIN_S)
                scenario.counted(await ledger.account())
                system.must_live()
        finally:
            await asyncio.to_thread(server.stop)
    scenario.judge()


@pytest.mark.waits
@pytest.mark.timeout(300)
@pytest.mark.scenario("a database that takes 2 s for each batch, for 30 s")
async def test_the_database_is_slow(server: Postgres, bus: Bus, nats_server: Nats, tmp_path: Path, scenario: Scenario) -> None:
    """The recorder takes no more than it can store: its memory stays as it was, and nothing is stored twice."""
    async with running(System(tmp_path, nats_server.url, server.url)) as system:
        await system.start(*SERVICES)
        ledger = Ledger(bus, server.url)
        await ledger.open("steady-1", "steady-2")
        async with ledger.publishing(8, 0.01):
            await ledger.flowing(100)
            await _execute(server, _SLOW)
            async with watched(system.services) as spent:
                await asyncio.sleep(30)
            scenario.spent(spent)
            await _execute(server, "DROP TRIGGER slow ON results")
            scenario.recovered(await ledger.row_after(datetime.now(UTC)))
        scenario.counted(await ledger.account())
        system.must_live()
    scenario.judge()


_SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END';
CREATE TRIGGER slow BEFORE INSERT ON results FOR EACH STATEMENT EXECUTE FUNCTION slow()
"""


async def _execute(server: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(server.url)
    await connection.execute(statement)
    await connection.close()
