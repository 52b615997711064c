"""A site with a NATS server of its own, whose line to the center is cut: it measures on, and delivers afterwards."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from shared import subjects
from shared.events import Result
from tests.faults.conftest import connected
from tests.faults.ledger import Ledger
from tests.faults.scenario import Scenario
from tests.faults.system import System, running
from tests.faults.usage import watched
from tests.leaf import Line, hub, leaf


@pytest.mark.waits
@pytest.mark.timeout(240)
@pytest.mark.scenario("the uplink of a site with a server of its own cut for 30 s")
async def test_the_uplink_of_a_site_is_cut(
    tmp_path: Path, database_url: str, database: "asyncpg.Connection[asyncpg.Record]", scenario: Scenario
) -> None:
    """Every instant is measured when it is due, the cut notwithstanding; the results arrive in order, each once."""
    center, port = await asyncio.to_thread(hub, tmp_path / "hub")
    async with Line(port) as line:
        office = await asyncio.to_thread(leaf, tmp_path / "office", "office", line)
        try:
            async with (
                connected(center.url) as bus,
                running(System(tmp_path, center.url, database_url)) as here,
                running(System(tmp_path, office.url, database_url)) as there,
            ):
                await here.start("scheduler", REFRESHER_LEAVES="office")
                await here.start("recorder")
                await there.start("scheduler", REFRESHER_LEAF="office")
                await there.start("runner", REFRESHER_SITE="office")
                ledger = Ledger(bus, database_url)
                await ledger.open("steady-1", "steady-2", sites=["office"])
                await ledger.flowing(10)
                async with watched([*here.services, *there.services]) as spent:
                    line.cut()
                    cut_at = datetime.now(UTC)
                    await asyncio.sleep(30)
                    mended_at = datetime.now(UTC)
                    line.mend()
                scenario.spent(spent)
                scenario.remark(f"first result {await ledger.row_after(mended_at):.1f} s after the line was back")
                await ledger.open("changed", sites=["office"])  # a pause could otherwise be made that nobody there hears of yet
                scenario.remark(f"first run of a new schedule {await ledger.run_after(mended_at, schedule='changed'):.1f} s after it")
                scenario.counted(await ledger.account())
                here.must_live()
                there.must_live()
                arrived = [Result.model_validate_json(message.data) for message in await bus.messages(subjects.RESULTS)]
        finally:
            await asyncio.to_thread(office.stop)
            await asyncio.to_thread(center.stop)
    runs = [result for result in arrived if result.started_at]
    for schedule in ("steady-1", "steady-2"):
        due = [result.due_at for result in runs if result.schedule == schedule]
        assert due == sorted(set(due)), "each once, in the order in which they were measured"
    meanwhile = await database.fetch("SELECT due_at, started_at FROM results WHERE due_at BETWEEN $1 AND $2", cut_at, mended_at)
    assert len(meanwhile) >= 2 * 29
    late = [row for row in meanwhile if row["started_at"] is None or (row["started_at"] - row["due_at"]).total_seconds() > 1]
    assert not late, f"{len(late)} of {len(meanwhile)} were not measured when they were due"
    scenario.judge()
