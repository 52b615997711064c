"""The runner under fire: a test that was cut short is measured again, and ends as one row."""

import asyncio
import signal
import time
from datetime import UTC, datetime

import pytest

from tests.faults.ledger import Ledger
from tests.faults.scenario import RESTARTS_WITHIN_S, Scenario
from tests.faults.system import System, kill
from tests.integration.conftest import until
from tests.services import ServiceProcess

SITES = [f"site-{number}" for number in range(5)]
OFTEN, RARELY = SITES[:3], SITES[3:]
"""Sites whose ticks are too late when they come again (a row says so), and sites where there is still time to measure."""
TEST_S = 0.6
"""How long a test takes: a runner is at it more often than not."""
GRACE_S = 10.0
"""How long a service that is told to stop may take: what supervisors give is longer."""


async def amid_a_test(runner: ServiceProcess, site: str) -> None:
    """Wait until a runner is measuring."""

    async def measuring() -> bool:
        return await asyncio.to_thread(runner.metric, f'refresher_runs_in_flight{{engine="noop",site="{site}"}}') == 1

    await until(measuring, 60)


@pytest.mark.timeout(300)
@pytest.mark.scenario("runners killed amid a test 20 times, at 5 sites")
async def test_runners_are_killed_amid_a_test(system: System, ledger: Ledger, scenario: Scenario) -> None:
    """The server notices after 15 s that nobody is at the tick and hands it out again; meanwhile the site's other ticks wait."""
    await system.start("recorder", "scheduler")
    for site in SITES:
        await system.start("runner", REFRESHER_SITE=site)
    await ledger.open("often", sites=OFTEN, seconds=TEST_S)
    await ledger.open("rarely", sites=RARELY, every_s=20, seconds=TEST_S)

    async def kill_again_and_again(runner: ServiceProcess, site: str) -> None:
        for _ in range(4):
            await amid_a_test(runner, site)
            killed_at = await kill(runner)
            scenario.recovered(await ledger.row_after(killed_at, sites=[site]), RESTARTS_WITHIN_S)
            await asyncio.to_thread(runner.wait_until_ready)

    async with asyncio.TaskGroup() as killing:
        for runner, site in zip(system.named("runner"), SITES, strict=True):
            killing.create_task(kill_again_and_again(runner, site))
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


@pytest.mark.timeout(180)
@pytest.mark.scenario("the runner told to stop amid a test, 6 times, every other time twice")
async def test_a_runner_is_told_to_stop_amid_a_test(system: System, ledger: Ledger, scenario: Scenario) -> None:
    """It hands its tick back and ends within its grace period; whoever comes next measures it, with nothing lost by a second SIGTERM."""
    await system.start("recorder", "scheduler")
    runner = await system.start("runner")
    await ledger.open("steady", seconds=TEST_S)
    took: list[float] = []
    for number in range(6):
        await amid_a_test(runner, "home")
        told_at, started = datetime.now(UTC), time.monotonic()
        runner.process.send_signal(signal.SIGTERM)
        if number % 2:
            await asyncio.sleep(0.01)
            runner.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(runner.process.wait, 30)
        took.append(time.monotonic() - started)
        runner.start()
        scenario.recovered(await ledger.row_after(told_at), RESTARTS_WITHIN_S)
    scenario.remark(f"ended within {max(took):.1f} s")
    scenario.counted(await ledger.account())
    scenario.judge()
    assert max(took) < GRACE_S
