"""The recorder under fire: what was published is a row, once, however often the one who writes it dies."""

import pytest

from tests.faults.ledger import Ledger
from tests.faults.scenario import RESTARTS_WITHIN_S, Scenario
from tests.faults.system import System, kill


@pytest.mark.timeout(300)
@pytest.mark.scenario("the recorder killed 30 times under 100 results per second")
async def test_the_recorder_is_killed_thirty_times(system: System, ledger: Ledger, scenario: Scenario) -> None:
    """Killed before, amid and after commits: what was stored and not acknowledged comes again, and is there once."""
    await system.start("scheduler", "runner")
    recorder = await system.start("recorder")
    await ledger.open("steady-1", "steady-2")
    async with ledger.publishing():
        for _ in range(30):
            await ledger.flowing(20)
            killed_at = await kill(recorder)
            scenario.recovered(await ledger.row_after(killed_at), RESTARTS_WITHIN_S)
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()
