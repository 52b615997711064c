"""Too much at once: what nobody can read, everything ten times, and a million results that waited."""

import asyncio
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from nats.aio.client import Client

from shared import subjects
from tests.faults.conftest import connected
from tests.faults.ledger import ELSEWHERE, Ledger, canned
from tests.faults.scenario import Scenario
from tests.faults.system import System
from tests.faults.usage import watched
from tests.integration.conftest import Bus, until
from tests.servers import Nats

SUBJECT = subjects.result(ELSEWHERE, None)
WINDOW = 5_000
"""So many messages are on the way at once: the server drops what comes while 10,000 wait to be stored."""
BACKLOG = 1_000_000


async def publish(client: Client, payloads: Iterator[bytes]) -> None:
    """Publish on the subject of results, many at once: of each window the last one is acknowledged, and with it those before."""
    for number, payload in enumerate(payloads, 1):
        if number % WINDOW:
            await client.publish(SUBJECT, payload)
        else:
            await client.request(SUBJECT, payload, timeout=60)


@pytest.mark.short
@pytest.mark.timeout(120)
@pytest.mark.scenario("10,000 unreadable messages among 1,000 good ones")
async def test_poison_among_good_ones(system: System, bus: Bus, ledger: Ledger, scenario: Scenario) -> None:
    """Each is put aside alone, with its reason; every good one is a row."""
    good = [canned() for _ in range(1_000)]
    payloads = [result.to_json() for result in good] + [f"garbage {number}".encode() for number in range(10_000)]
    random.Random(1).shuffle(payloads)
    for payload in payloads:
        await bus.js.publish_async(SUBJECT, payload)
    await bus.js.publish_async_completed()
    ledger.published |= {result.run_id for result in good}
    await system.start("recorder")
    scenario.counted(await ledger.account())

    async def aside() -> bool:
        return await bus.count(subjects.DEAD) == 10_000

    await until(aside, 30)
    scenario.remark("10,000 put aside")
    system.must_live()
    scenario.judge()


@pytest.mark.short
@pytest.mark.timeout(120)
@pytest.mark.scenario("1,000 results delivered ten times each, in any order")
async def test_every_result_comes_ten_times(system: System, bus: Bus, ledger: Ledger, scenario: Scenario) -> None:
    """The first one of each is the row, whichever batches the others come in."""
    results = [canned() for _ in range(1_000)]
    payloads = [result.to_json() for result in results] * 10
    random.Random(1).shuffle(payloads)
    for payload in payloads:
        await bus.js.publish_async(SUBJECT, payload)
    await bus.js.publish_async_completed()
    assert await bus.count(subjects.RESULTS) == 10_000
    ledger.published |= {result.run_id for result in results}
    recorder = await system.start("recorder")

    async def all_taken() -> bool:
        return recorder.metric('refresher_results_total{outcome="duplicate"}') == 9_000

    await until(all_taken, 60)
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


@pytest.mark.timeout(900)
@pytest.mark.scenario("a backlog of 1,000,000 results")
async def test_a_million_results_wait(
    system: System, nats_server: Nats, database_url: str, database: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path, scenario: Scenario
) -> None:
    """All are rows in the end, each once, and the recorder takes no more memory for many than for few.

    They are published to a server that writes to its disk when it likes, which is then started anew as it is in earnest.
    """
    configuration = nats_server.configuration.read_text()
    assert "sync_interval: always" in configuration
    nats_server.stop()
    nats_server.configuration.write_text(configuration.replace("sync_interval: always", "sync_interval: 1m"))
    nats_server.start()
    async with connected(nats_server.url) as bus:
        started = time.monotonic()
        await publish(bus.client, _results(BACKLOG))
        scenario.remark(f"published in {time.monotonic() - started:.0f} s")
        assert await bus.count(subjects.RESULTS) == BACKLOG
    nats_server.stop()
    nats_server.configuration.write_text(configuration)
    nats_server.start()
    started = time.monotonic()
    recorder = await system.start("recorder")

    async def all_stored() -> bool:
        await asyncio.sleep(1)  # counting takes its time too
        return bool(await database.fetchval("SELECT count(*) FROM results") >= BACKLOG)

    async with watched([recorder]) as spent:
        await until(all_stored, 800)
    took_s = time.monotonic() - started
    scenario.remark(f"stored in {took_s:.0f} s, {BACKLOG / took_s:,.0f} per second")
    scenario.figures.growth_mb = spent["recorder"].growth_mb
    stored, runs = await database.fetchrow("SELECT count(*), count(DISTINCT run_id) FROM results")  # type: ignore[misc]
    scenario.tallied(BACKLOG, stored, BACKLOG - runs, stored - runs)
    system.must_live()
    scenario.judge()
    assert spent["recorder"].growth_mb < 100


def _results(number: int) -> Iterator[bytes]:
    """Yield results that differ in their ids alone: to make each one anew would take longer than to store it."""
    result = canned(datetime.now(UTC))
    before, after = result.to_json().split(str(result.run_id).encode())
    for _ in range(number):
        yield before + str(uuid4()).encode() + after
