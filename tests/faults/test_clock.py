"""Clocks that are wrong: what is set by an hour either way, and five minutes in which no scheduler lived."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from shared import subjects
from shared.history import spec
from shared.schedules import CatchUp
from tests.faults.clock import Clock
from tests.faults.ledger import SETTLED_WITHIN_S, Ledger
from tests.faults.scenario import Scenario
from tests.faults.system import System
from tests.integration.conftest import Bus, until

HOUR_S = 3_600
WRONG_FOR_S = 8
CATCH_UPS: tuple[CatchUp, ...] = ("all", "latest", "none")


@pytest.mark.timeout(240)
@pytest.mark.scenario("the clock of every service set an hour ahead, right, an hour back, and right")
async def test_the_clock_is_stepped_by_an_hour_each_way(system: System, ledger: Ledger, scenario: Scenario, tmp_path: Path) -> None:
    """What the true clock says was due has its row, once; what ran too early, by the wrong one, has one too, and never a second.

    The servers' clocks stay right: they are other machines.
    """
    clock = Clock(tmp_path)
    await system.start("recorder", "runner", "scheduler", "scheduler", **clock.environment)
    await ledger.open("latest", catch_up="latest")
    await ledger.open("none", catch_up="none")
    await ledger.flowing()
    for ahead_s in (HOUR_S, -HOUR_S):
        clock.set(ahead_s)
        await asyncio.sleep(WRONG_FOR_S)
        clock.set(0)
        set_at = datetime.now(UTC)
        scenario.recovered(await ledger.row_after(set_at))
        await ledger.flowing()
    await ledger.close()
    closed_at = datetime.now(UTC)

    async def even() -> bool:
        account = await ledger.look()
        return not account.missing

    with contextlib.suppress(AssertionError):  # the account tells what is missing
        await until(even, SETTLED_WITHIN_S)
    account = await ledger.look()
    early = {each for each in account.surplus if isinstance(each, tuple) and each[2] > closed_at + timedelta(minutes=10)}
    doubled = sum(count > 1 for count in account.stored.values()) + sum(each not in early for each in account.surplus)
    scenario.tallied(account.expected.total(), account.expected.total() - account.missing.total(), account.missing.total(), doubled)
    scenario.remark(f"{len(early)} ran an hour early")
    system.must_live()
    assert early, "the clock was not wrong: nothing was tried"
    scenario.judge()


@pytest.mark.timeout(240)
@pytest.mark.scenario("all schedulers down for 5 minutes")
async def test_all_schedulers_are_down_for_five_minutes(
    system: System, bus: Bus, ledger: Ledger, scenario: Scenario, database_url: str
) -> None:
    """The 300 instants of three schedules that nobody published: as each says, all run late, the last one, or none; all have a row.

    The minutes are not waited for: the schedules are known to the ledger since then, as if a recorder had read them.
    """
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    made_at = (await bus.js.stream_info(f"KV_{subjects.SCHEDULES}")).created
    connection = await asyncpg.connect(database_url)
    state = "UPDATE ledger_state SET began_at = $1, settled_until = $1, schedules_made_at = $2"
    await connection.execute(state, since - timedelta(seconds=1), made_at)
    for number, catch_up in enumerate(CATCH_UPS, 1):
        await ledger.open(catch_up, catch_up=catch_up, since=since)
        version = (number, catch_up, since, spec(ledger.schedule(catch_up)))
        await connection.execute("INSERT INTO schedule_versions (number, name, revision, since, spec) VALUES ($1, $2, 0, $3, $4)", *version)
    await connection.close()
    await system.start("recorder", "runner")
    started_at = datetime.now(UTC)
    await system.start("scheduler", "scheduler")
    scenario.recovered(await ledger.run_after(started_at), 30)
    await ledger.flowing(100)
    scenario.counted(await ledger.account(2 * SETTLED_WITHIN_S))
    system.must_live()
    scenario.judge()
