"""The runner as a process, on a real server."""

import asyncio
import re
import signal
import time
from itertools import pairwise
from uuid import UUID

from services.runner.heartbeat import SETTLES_S
from shared import subjects
from shared.events import Progress, Result, Status
from shared.runners import Runner
from tests.integration.conftest import Bus, Start, until


async def results(bus: Bus) -> list[Result]:
    """Return all results in the stream."""
    return [Result.model_validate_json(message.data) for message in await bus.messages(subjects.RESULTS)]


async def result_of(bus: Bus, run_id: UUID, deadline_s: float = 15) -> Result:
    """Wait for the result of a run."""

    async def found() -> Result | None:
        return next((result for result in await results(bus) if result.run_id == run_id), None)

    return await until(found, deadline_s)


async def test_a_tick_becomes_one_result(bus: Bus, start: Start) -> None:
    """Measured, published, and only then acknowledged."""
    runner = start("runner")
    tick = await bus.tick()
    result = await result_of(bus, tick.run_id)
    assert (result.status, result.engine, result.site, result.trigger) == (Status.SUCCEEDED, "noop", "home", "manual")
    assert result.started_at
    assert tick.due_at <= result.started_at <= result.finished_at

    async def acknowledged() -> bool:
        return not (await bus.js.consumer_info(subjects.TICKS, "runner-home")).num_ack_pending

    await until(acknowledged)
    (message,) = await bus.messages(subjects.RESULTS)
    assert message.headers
    # the server drops a second message with the id of a first, on whatever subject: nobody may be able to foretell it
    assert re.fullmatch(rf"{tick.run_id}:.+-[0-9a-f]{{6}}", message.headers["Nats-Msg-Id"])
    assert runner.metric('refresher_runs_total{engine="noop",site="home",status="succeeded"}') == 1


async def test_what_cannot_be_measured_is_a_result_too(bus: Bus, start: Start) -> None:
    """Too late: missed. An engine that is not here, or options that it refuses: failed, and the message says what to do."""
    start("runner")
    late = await result_of(bus, (await bus.tick(expires_in_s=-1)).run_id)
    assert (late.status, late.failure and late.failure.kind, late.started_at) == (Status.MISSED, "runner_offline", None)
    stranger = await result_of(bus, (await bus.tick("teleport")).run_id)
    assert stranger.status is Status.FAILED
    assert stranger.failure
    assert stranger.failure.kind == "no_engine"
    assert "noop" in stranger.failure.message
    wrong = await result_of(bus, (await bus.tick("noop", second=1)).run_id)
    assert wrong.failure
    assert wrong.failure.kind == "misconfigured"
    assert "second" in wrong.failure.message


async def test_what_is_no_tick_is_put_aside(bus: Bus, start: Start) -> None:
    """Garbage on the subject goes to the dead letters with its reason, and the next tick runs."""
    start("runner")
    await bus.js.publish("refresher.tick.home.garbage.1", b'{"run_id": "no"}')
    await result_of(bus, (await bus.tick()).run_id)
    (dead,) = await bus.messages(subjects.DEAD)
    assert dead.data == b'{"run_id": "no"}'
    assert dead.headers
    assert "run_id" in dead.headers["Refresher-Reason"]
    assert dead.headers["Refresher-Subject"] == "refresher.tick.home.garbage.1"


async def test_two_runners_of_a_site_never_measure_at_once(bus: Bus, start: Start) -> None:
    """They share the line: the second tick waits until the first is done, whoever takes it."""
    start("runner")
    start("runner")
    ticks = [await bus.tick(seconds=0.4) for _ in range(4)]
    spans = []
    for tick in ticks:
        result = await result_of(bus, tick.run_id)
        assert result.started_at
        spans.append((result.started_at, result.finished_at))
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


async def test_a_runner_that_is_stopped_hands_its_run_back(bus: Bus, start: Start) -> None:
    """SIGTERM in the middle of a test: another runner measures it at once, and there is one result."""
    first = start("runner")
    tick = await bus.tick(seconds=3)

    async def busy() -> bool:
        return first.metric('refresher_runs_in_flight{engine="noop",site="home"}') == 1

    await until(busy)
    second = start("runner")
    first.process.send_signal(signal.SIGTERM)
    result = await result_of(bus, tick.run_id)
    assert result.attempt == 2, (first.log.read_text(), second.log.read_text())
    assert first.process.wait(15) in (0, -signal.SIGTERM)
    assert second.metric('refresher_runs_total{engine="noop",site="home",status="succeeded"}') == 1
    assert len(await results(bus)) == 1


async def test_a_runner_that_is_stopped_alone_hands_its_run_back_once(bus: Bus, start: Start) -> None:
    """With nobody else there the tick waits: it does not come back to the one that stops until all its deliveries are spent."""
    runner = start("runner")
    tick = await bus.tick(seconds=3)

    async def busy() -> bool:
        return runner.metric('refresher_runs_in_flight{engine="noop",site="home"}') == 1

    await until(busy)
    runner.stop()
    assert (await bus.js.consumer_info(subjects.TICKS, "runner-home")).delivered.consumer_seq == 1  # type: ignore[union-attr]
    runner.start()
    assert (await result_of(bus, tick.run_id)).attempt == 2


async def test_a_long_run_is_not_delivered_twice(bus: Bus, start: Start) -> None:
    """A run that takes longer than the server waits is kept alive by the runner."""
    start("runner")
    result = await result_of(bus, (await bus.tick(seconds=17)).run_id, 30)
    assert result.attempt == 1
    await result_of(bus, (await bus.tick()).run_id)
    assert len(await results(bus)) == 2


async def test_a_runner_says_that_it_is_there(bus: Bus, start: Start) -> None:
    """Its heartbeat names site, engines and the run it is busy with; a runner that leaves is gone at once.

    The consumer of a site that is new is made by the scheduler, which the runner asks.
    """
    start("scheduler")
    runner = start("runner", REFRESHER_SITE="office")
    bucket = await bus.js.key_value(subjects.RUNNERS)

    async def here() -> list[Runner]:
        keys = (await bus.js.stream_info(f"KV_{subjects.RUNNERS}", subjects_filter=">")).state.subjects or {}
        found = []
        for key in keys:
            entry = await bus.js.get_last_msg(f"KV_{subjects.RUNNERS}", key)
            if entry.data:
                found.append(Runner.model_validate_json(entry.data))
        return found

    (seen,) = await until(here)
    assert (seen.site, seen.run_id) == ("office", None)
    assert {"noop", "speedtest"} <= set(seen.engines)
    assert (await bucket.get(f"office.{seen.id}")).value
    runner.stop()

    async def gone() -> bool:
        return not await here()

    await until(gone)


async def test_runs_in_quick_succession_share_their_heartbeats(bus: Bus, start: Start) -> None:
    """However many runs begin and end, the server has to write no more than a few heartbeats a second to its disk."""
    start("runner")
    await result_of(bus, (await bus.tick()).run_id)
    stream = f"KV_{subjects.RUNNERS}"
    began, before = time.monotonic(), (await bus.js.stream_info(stream)).state.last_seq
    ticks = await asyncio.gather(*(bus.tick(seconds=0.001) for _ in range(60)))
    for tick in ticks:
        await result_of(bus, tick.run_id)
    written = (await bus.js.stream_info(stream)).state.last_seq - before
    assert written <= (time.monotonic() - began) / SETTLES_S + 2


async def test_progress_is_told_while_it_runs(bus: Bus, start: Start) -> None:
    """Whoever listens on the run's subject sees it move."""
    start("runner")
    run_id = UUID("00000000-0000-4000-8000-000000000001")
    listening = await bus.client.subscribe(subjects.progress(run_id))
    await bus.client.flush()
    await bus.tick()  # over before it has anything to tell
    await bus.tick(run_id=run_id, seconds=1)
    progress = Progress.model_validate_json((await listening.next_msg(10)).data)
    assert (progress.phase, progress.fraction, progress.engine) == ("waiting", 0, "noop")


async def test_a_runner_whose_consumer_is_deleted_ends(bus: Bus, start: Start) -> None:
    """It would wait, or spin, for ever; it ends with an error, and started again, it has the scheduler make the consumer anew."""
    runner = start("runner")
    await bus.js.delete_consumer(subjects.TICKS, "runner-home")
    assert await asyncio.to_thread(runner.process.wait, 20) == 1
    assert "runner-home" in runner.log.read_text()
    start("scheduler")
    runner.start()
    runner.wait_until_ready()
    await result_of(bus, (await bus.tick()).run_id)
