"""The scheduler under fire: whichever replicas die or freeze, every instant has its row, once."""

import asyncio
import random
import signal
from datetime import UTC, datetime

import pytest

from shared import subjects
from tests.faults.ledger import Ledger
from tests.faults.scenario import RESTARTS_WITHIN_S, Scenario
from tests.faults.system import System, at_an_instant, kill
from tests.integration.conftest import Bus, until
from tests.services import ServiceProcess

SCHEDULES = [f"steady-{number}" for number in range(12)]
"""More than are published one by one."""


@pytest.mark.timeout(420)
@pytest.mark.scenario("two schedulers, one of them killed 100 times")
async def test_schedulers_are_killed_a_hundred_times(system: System, ledger: Ledger, scenario: Scenario) -> None:
    """While the other one lives nothing is late, and what both publish is there once: most kills hit amid the publishing."""
    await system.start("recorder", "runner", "scheduler", "scheduler")
    await ledger.open(*SCHEDULES)
    await ledger.flowing()
    schedulers = system.named("scheduler")
    for number in range(100):
        await at_an_instant(random.uniform(-0.02, 0.04))
        victim = schedulers[number % 2]
        killed_at = await kill(victim)
        await asyncio.to_thread(victim.wait_until_ready)
        if number % 10 == 9:
            scenario.recovered(await ledger.row_after(killed_at))
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


@pytest.mark.timeout(240)
@pytest.mark.scenario("both schedulers killed 3 times, each time gone for 3 s")
async def test_all_schedulers_are_away(system: System, ledger: Ledger, scenario: Scenario) -> None:
    """What came due while there was no scheduler at all is not forgotten.

    Where all is caught up it runs late; where only the latest is, or nothing, the other instants become rows that say so.
    """
    await system.start("recorder", "runner", "scheduler", "scheduler")
    await ledger.open("all", catch_up="all")
    await ledger.open("latest", catch_up="latest")
    await ledger.open("none", catch_up="none")
    await ledger.flowing()
    for _ in range(3):
        for each in system.named("scheduler"):
            each.kill()
        await asyncio.sleep(3)
        started_at = datetime.now(UTC)
        for each in system.named("scheduler"):
            each.start()
        scenario.recovered(await ledger.row_after(started_at), RESTARTS_WITHIN_S)
        for each in system.named("scheduler"):
            await asyncio.to_thread(each.wait_until_ready)
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


@pytest.mark.timeout(240)
@pytest.mark.scenario("two schedulers, one frozen 8 times for longer than the duplicate window")
async def test_a_scheduler_is_frozen_past_the_duplicate_window(system: System, bus: Bus, ledger: Ledger, scenario: Scenario) -> None:
    """A replica that wakes up and publishes what it had in hand doubles nothing: the subject remembers, not the window.

    The window of the stream is two minutes; here it is set to half a second once the schedulers have started, which the server allows.
    """
    await system.start("recorder", "runner", "scheduler", "scheduler")
    config = (await bus.js.stream_info(subjects.TICKS)).config
    await bus.js.update_stream(config.evolve(duplicate_window=0.5))
    await ledger.open(*SCHEDULES)
    await ledger.flowing()
    for number in range(8):
        victim = system.named("scheduler")[number % 2]
        await at_an_instant(random.uniform(-0.005, 0.01))  # with ticks made and not yet acknowledged
        enough = _refused(victim) + 2 * len(SCHEDULES)
        victim.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(3)
        victim.process.send_signal(signal.SIGCONT)
        await until(lambda victim=victim, enough=enough: _has_refused(victim, enough))  # type: ignore[misc]
    assert (await bus.js.stream_info(subjects.TICKS)).config.duplicate_window == 0.5
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


def _refused(scheduler: ServiceProcess) -> float:
    """Return how many of its ticks were there already."""
    return scheduler.metric('refresher_ticks_total{outcome="already_there",trigger="schedule"}')


async def _has_refused(scheduler: ServiceProcess, number: float) -> bool:
    return _refused(scheduler) >= number
