"""The promise under fire: whatever is killed in the middle of a run, every tick ends as exactly one row.

Real processes, real kills (SIGKILL), real servers.
"""

import asyncio
import json
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from shared import subjects
from shared.connect import NATS_AWAY
from tests.integration.conftest import Bus, Start, interval, until
from tests.servers import Nats, Postgres

EVERY_S = 2


@pytest.mark.parametrize("victim", ["scheduler", "runner", "recorder", "api", "nats", "postgres"])
async def test_every_tick_ends_as_one_row(victim: str, bus: Bus, start: Start, nats_server: Nats, open_directory: Path) -> None:
    """Nothing is missing and nothing is there twice, and no part has to be told to go on."""
    database = Postgres(open_directory)
    try:
        services = {name: start(name, database.url) for name in ("recorder", "runner", "api", "scheduler")}
        await bus.put(interval("steady", EVERY_S, options={"seconds": 1}))
        await bus.put(interval("beside", 1))  # which does not use the line
        runner = services["runner"]
        await until(lambda: _is_measuring(runner.metric))
        if victim == "nats":
            nats_server.kill()
            await asyncio.sleep(EVERY_S)
            nats_server.start()
        elif victim == "postgres":
            database.stop()
            await asyncio.sleep(20)
            database.start()
        else:
            services[victim].kill()
            await asyncio.sleep(EVERY_S)
            services[victim].start()
            services[victim].wait_until_ready()
        await until(lambda: _stopped_after_more(bus), 40)
        scheduler = services["scheduler"]
        await until(lambda: _has_nothing_to_do(scheduler.metric), 30)  # from here on no tick can come
        expected = Counter(str(json.loads(message.data or b"")["run_id"]) for message in await bus.messages(subjects.TICKS))
        assert expected.total() >= 6
        stored = await _rows(database.url, expected.total())
        assert stored == expected, f"missing {expected - stored}, doubled {stored - expected}"
        assert not await bus.count(subjects.DEAD)
        for name, service in services.items():
            assert service.process.poll() is None, f"{name} ended:\n{service.log.read_text()[-2_000:]}"
    finally:
        database.stop()


async def _is_measuring(metric) -> bool:  # type: ignore[no-untyped-def]
    return bool(metric('refresher_runs_in_flight{engine="noop",site="home"}') == 1)


async def _stopped_after_more(bus: Bus) -> bool:
    """Wait for four more ticks, then remove the schedules."""
    try:
        before = await bus.count(subjects.TICKS)
        await until(lambda: _more_than(bus, before + 3), 20)
        bucket = await bus.js.key_value(subjects.SCHEDULES)
        await asyncio.gather(*(bucket.delete(name) for name in ("steady", "beside")))
    except NATS_AWAY:
        return False
    return True


async def _more_than(bus: Bus, number: int) -> bool:
    return await bus.count(subjects.TICKS) > number


async def _has_nothing_to_do(metric) -> bool:  # type: ignore[no-untyped-def]
    return bool(metric('refresher_schedules{state="enabled"}') == 0)


async def _rows(database_url: str, number: int) -> "Counter[str]":
    """Return the runs that have a row, once there are so many."""
    connection = await asyncpg.connect(database_url)

    async def complete() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM results") >= number)

    try:
        await until(complete, 90)
        await asyncio.sleep(1)  # a row too many would still be on its way
        return Counter(str(row["run_id"]) for row in await connection.fetch("SELECT run_id FROM results"))
    finally:
        await connection.close()
