"""Engines that do not use the line, somebody else's among them: measured beside it, as a process on a real server."""

import asyncio
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from nats.aio.msg import Msg

import services.runner.beside
from services.recorder.presence import Presence
from services.runner.beside import Beside
from services.runner.measure import not_run
from services.runner.offer import Offer
from shared import subjects
from shared.events import Failure, Result, Status, Tick
from shared.provision import HEARTBEAT_S, PIN_GROUP, REDELIVER_AFTER_S
from shared.pull import Pull
from tests.integration.conftest import Bus, Start, until

ENGINE = """
import asyncio

from services.runner.probes import Options, Report
from shared.events import Measurement


class PatientOptions(Options):
    seconds: float = 0

    @property
    def uses_line(self) -> bool:
        return False


async def measure(options: PatientOptions, report: Report) -> Measurement:
    await asyncio.sleep(options.seconds)
    return Measurement()
"""


@pytest.fixture
def packages(tmp_path: Path) -> str:
    """Give a folder with somebody's package, whose engine `patient` waits for `seconds` without using the line."""
    (tmp_path / "my_package.py").write_text(ENGINE)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[refresher.probes]\npatient = my_package:measure\n")
    return str(tmp_path)


async def results(bus: Bus, count: int, deadline_s: float = 20) -> list[Result]:
    """Wait for so many results and return all there are, in the order in which they were published."""

    async def there() -> bool:
        return await bus.count(subjects.RESULTS) >= count

    await until(there, deadline_s)
    return [Result.model_validate_json(message.data) for message in await bus.messages(subjects.RESULTS)]


async def in_flight(bus: Bus) -> int:
    """Return how many ticks have been handed out and have not ended."""
    return (await bus.js.consumer_info(subjects.TICKS, "runner-home")).num_ack_pending or 0


def ended(found: list[Result], *ticks: Tick) -> bool:
    """Return whether these runs, and no others, succeeded once each."""
    succeeded = sorted(str(result.run_id) for result in found if result.status is Status.SUCCEEDED)
    return succeeded == sorted(str(tick.run_id) for tick in ticks) and len(found) == len(ticks)


async def test_what_does_not_use_the_line_waits_for_nobody(bus: Bus, start: Start, packages: str) -> None:
    """Not for what is measured on the line, whatever its overlap policy says, nor for each other; what is slow holds up nothing."""
    start("runner", PYTHONPATH=packages)
    line = await bus.tick(seconds=6)
    await until(lambda: in_flight(bus))
    slow = [await bus.tick("patient", seconds=3, tick={"overlap": policy}) for policy in ("skip", "cancel_other", "queue_one", "queue_all")]
    quick = [await bus.tick(), await bus.tick("patient"), await bus.tick("patient", tick={"fallback": {"engine": "noop"}})]
    found = await results(bus, 8)
    assert ended(found, line, *slow, *quick)
    order = [result.run_id for result in found]
    assert set(order[:3]) == {tick.run_id for tick in quick}
    assert order[-1] == line.run_id
    beside = [result for result in found if result.run_id in {tick.run_id for tick in slow}]
    assert max(result.started_at for result in beside if result.started_at) < min(result.finished_at for result in beside)

    async def acknowledged() -> bool:
        return not await in_flight(bus)

    await until(acknowledged)


async def test_what_might_use_the_line_after_all_waits_for_it(bus: Bus, start: Start, packages: str) -> None:
    """A fallback that does, and what every line of the site waits for."""
    start("runner", PYTHONPATH=packages)
    line = await bus.tick(seconds=2)
    await until(lambda: in_flight(bus))
    fallback = await bus.tick("patient", tick={"fallback": {"engine": "noop", "options": {"seconds": 1}}})
    anybodys = await bus.tick("patient", tick={"line": "any"})
    found = await results(bus, 3)
    assert ended(found, line, fallback, anybodys)
    assert [result.run_id for result in found] == [line.run_id, fallback.run_id, anybodys.run_id]


async def test_a_runner_that_is_stopped_hands_them_back_at_once(bus: Bus, start: Start, packages: str) -> None:
    """SIGTERM in the middle of many: the next runner measures them, without waiting for the server to miss the first."""
    first = start("runner", PYTHONPATH=packages)
    ticks = [await bus.tick("patient", seconds=3) for _ in range(5)]

    async def all_begun() -> bool:
        return first.metric('refresher_runs_in_flight{engine="patient",site="home"}') == len(ticks)

    await until(all_begun)
    began = time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.process.wait, 15) in (0, -signal.SIGTERM)
    start("runner", PYTHONPATH=packages)
    found = await results(bus, len(ticks))
    assert time.monotonic() - began < REDELIVER_AFTER_S[0]
    assert ended(found, *ticks)
    assert {result.attempt for result in found} == {2}


async def test_those_that_are_measured_for_long_stay_with_their_runner(bus: Bus, start: Start, packages: str) -> None:
    """The server is told again and again that they are looked after, and the recorder that they are not lost."""
    start("runner", PYTHONPATH=packages)
    tick = await bus.tick("patient", seconds=17)

    async def is_told() -> bool:
        return (await Presence(1).look(bus.js, datetime.now(UTC))).busy == {tick.run_id}

    await until(is_told, HEARTBEAT_S + 5)
    (result,) = await results(bus, 1, 30)
    assert result.attempt == 1
    assert ended(await results(bus, 1), tick)
    delivered = (await bus.js.consumer_info(subjects.TICKS, "runner-home")).delivered
    assert delivered
    assert delivered.consumer_seq == 1  # after 15 s of silence it would have come a second time


async def test_a_tick_that_comes_again_is_not_measured_again(bus: Bus) -> None:
    """Neither while it is being measured nor when only its acknowledgement was lost; either way it is acknowledged."""
    measured: list[int] = []
    go_on = asyncio.Event()

    async def measure(offer: Offer) -> Result:
        measured.append(offer.attempt)
        await go_on.wait()
        return not_run(offer.tick, "runner-1", offer.attempt, Status.MISSED, Failure(kind="expired", message="too late"))

    async def publish(results: Sequence[Result]) -> None:
        assert [result.run_id for result in results] == [tick.run_id]

    async def acknowledged() -> bool:
        return not await in_flight(bus)

    tick = await bus.tick()
    async with asyncio.TaskGroup() as tasks, Pull(bus.client, bus.js, subjects.TICKS, "runner-home", batch=1, group=PIN_GROUP) as pull:
        beside = Beside(tasks, measure, publish)
        (first,) = await pull.next()
        await beside.offer([Offer(tick, first)])
        await first.nak()
        await beside.offer([Offer(tick, *(await pull.next()))])
        go_on.set()
        await until(acknowledged)
        await bus.tick()  # its message stands for that of the first one, a third time
        await beside.offer([Offer(tick, *(await pull.next()))])
        await until(acknowledged)
        await beside.stop()
    assert measured == [1]


async def test_results_on_their_way_are_not_thrown_away_by_a_stop(bus: Bus) -> None:
    """They get a moment to reach the stream; what is still being measured is handed back at once."""
    published: list[UUID] = []
    is_publishing, go_on = asyncio.Event(), asyncio.Event()

    async def measure(offer: Offer) -> Result:
        if offer.tick.run_id == slow.run_id:
            await asyncio.sleep(60)
        return not_run(offer.tick, "runner-1", offer.attempt, Status.MISSED, Failure(kind="expired", message="of the test"))

    async def publish(results: Sequence[Result]) -> None:
        is_publishing.set()
        await go_on.wait()
        published.extend(result.run_id for result in results)

    quick, slow = await bus.tick(), await bus.tick()
    async with asyncio.TaskGroup() as tasks, Pull(bus.client, bus.js, subjects.TICKS, "runner-home", batch=2, group=PIN_GROUP) as pull:
        beside = Beside(tasks, measure, publish)
        messages: list[Msg] = []
        while len(messages) < 2:
            messages += await pull.next()
        await beside.offer([Offer(tick, message) for tick, message in zip((quick, slow), messages, strict=True)])
        await is_publishing.wait()
        stopping = asyncio.create_task(beside.stop())
        await asyncio.sleep(0.1)
        go_on.set()
        await stopping
        assert published == [quick.run_id]
        (again,) = await asyncio.wait_for(pull.next(), 5)
        assert again.metadata.num_delivered == 2
        assert str(slow.run_id).encode() in again.data


async def test_an_engine_is_not_run_for_all_at_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may need a process for each: the others wait until one has ended."""
    monkeypatch.setattr(services.runner.beside, "AT_ONCE", 2)
    measured: list[UUID] = []
    go_on, all_ended = asyncio.Semaphore(0), asyncio.Event()

    async def measure(offer: Offer) -> Result:
        measured.append(offer.tick.run_id)
        await go_on.acquire()
        return not_run(offer.tick, "runner-1", offer.attempt, Status.MISSED, Failure(kind="expired", message="too late"))

    async def publish(results: Sequence[Result]) -> None:
        if len(measured) == 3:
            all_ended.set()

    ticks = [await bus.tick() for _ in range(3)]
    async with asyncio.TaskGroup() as tasks, Pull(bus.client, bus.js, subjects.TICKS, "runner-home", batch=3, group=PIN_GROUP) as pull:
        beside = Beside(tasks, measure, publish)
        messages: list[Msg] = []
        while len(messages) < len(ticks):
            messages += await pull.next()
        await beside.offer([Offer(tick, message) for tick, message in zip(ticks, messages, strict=True)])
        await asyncio.sleep(0.1)
        assert measured == [tick.run_id for tick in ticks[:2]]
        go_on.release()
        await asyncio.sleep(0.1)
        assert measured == [tick.run_id for tick in ticks]
        go_on.release()
        go_on.release()
        await asyncio.wait_for(all_ended.wait(), 5)
        await beside.stop()
