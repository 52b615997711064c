"""The line between a runner and the bus: cut without a word, and slow."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.ledger import Ledger
from tests.faults.line import THERE, Line, laid, reachable
from tests.faults.scenario import Scenario
from tests.faults.system import System, running
from tests.faults.usage import watched
from tests.servers import Nats


@pytest.fixture
def line() -> Iterator[Line]:
    """Give a line to another place."""
    with laid() as line:
        yield line


@pytest.mark.waits
@pytest.mark.timeout(240)
@pytest.mark.scenario("the line between runner and bus cut for 30 s")
async def test_the_line_is_cut(
    line: Line, nats_server: Nats, system: System, ledger: Ledger, database_url: str, tmp_path: Path, scenario: Scenario
) -> None:
    """No end is told. The runner notices, comes back by itself as soon as it can, and every instant has its row."""
    url = reachable(nats_server)
    await system.start("scheduler", "recorder")
    async with running(System(tmp_path, url, database_url, host=THERE, inside=line.inside)) as there:
        await there.start("runner", REFRESHER_SITE="office")
        await ledger.open("steady-1", "steady-2", sites=["office"])
        await ledger.flowing(10)
        async with watched([*system.services, *there.services]) as spent:
            line.cut()
            await asyncio.sleep(30)
        scenario.spent(spent)
        line.mend()
        scenario.recovered(await ledger.run_after(datetime.now(UTC)))
        scenario.counted(await ledger.account())
        system.must_live()
        there.must_live()
    scenario.judge()


@pytest.mark.waits
@pytest.mark.timeout(240)
@pytest.mark.scenario("the line between runner and bus at 64 kbit/s, for 30 s")
async def test_the_line_is_slow(
    line: Line, nats_server: Nats, system: System, ledger: Ledger, database_url: str, tmp_path: Path, scenario: Scenario
) -> None:
    """Everything takes its time and nothing is done twice: runs start late, but none is lost."""
    url = reachable(nats_server)
    await system.start("scheduler", "recorder")
    async with running(System(tmp_path, url, database_url, host=THERE, inside=line.inside)) as there:
        await there.start("runner", REFRESHER_SITE="office")
        line.slow_down(64)
        await ledger.open("steady-1", "steady-2", sites=["office"])
        async with watched([*system.services, *there.services]) as spent:
            await asyncio.sleep(30)
        scenario.spent(spent)
        scenario.counted(await ledger.account())
        system.must_live()
        there.must_live()
    scenario.judge()
