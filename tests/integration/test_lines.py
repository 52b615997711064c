"""Who measures when: runners that share a line, and runners of several lines, as processes on a real server."""

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from services.runner.claims import Claims
from services.runner.line import Line
from services.runner.measure import not_run
from services.runner.offer import Offer
from shared import subjects
from shared.events import Failure, Result, Status
from shared.provision import PIN_GROUP, UNPINNED_AFTER_S, provision_runner
from shared.pull import Pull
from shared.runners import Runner
from tests.integration.conftest import Bus, Start, until
from tests.servers import Nats

BRIEF_S = 0.01
"""What takes any time at all takes it on the line."""


async def results(bus: Bus, count: int, deadline_s: float = 20) -> list[Result]:
    """Wait for so many results and return all there are, in the order in which they were published."""
    await until(lambda: _at_least(bus, count), deadline_s)
    return [Result.model_validate_json(message.data) for message in await bus.messages(subjects.RESULTS)]


async def _at_least(bus: Bus, count: int) -> bool:
    return await bus.count(subjects.RESULTS) >= count


async def busy(bus: Bus, runs: int = 1) -> bool:
    """Return whether so many runners say that they are measuring."""
    stream = f"KV_{subjects.RUNNERS}"
    keys = (await bus.js.stream_info(stream, subjects_filter=">")).state.subjects or {}
    entries = [(await bus.js.get_last_msg(stream, key)).data for key in keys]
    return sum(Runner.model_validate_json(entry).run_id is not None for entry in entries if entry) == runs


def at_once(found: Sequence[Result]) -> int:
    """Return how many runs overlap another one."""
    spans = sorted((result.started_at, result.finished_at) for result in found if result.started_at)
    return sum(end > begin for (_, end), (begin, _) in pairwise(spans))


def kinds(found: Sequence[Result]) -> list[tuple[Status, str | None]]:
    """Return how runs ended, and why."""
    return [(result.status, result.failure.kind if result.failure else None) for result in found]


async def test_two_processes_on_one_line_take_turns_across_restarts_of_the_server(bus: Bus, start: Start, nats_server: Nats) -> None:
    """A server that was killed has forgotten to whom the line's ticks go; whoever is handed the next one waits for the other."""
    first, second = start("runner"), start("runner")
    ticks = 0
    found: list[Result] = []
    while len({result.runner for result in found}) < 2:  # until the line has changed hands
        assert ticks < 30, "the same runner had every tick: nothing was tried"
        await bus.tick(seconds=3)
        await until(lambda: busy(bus), 40)
        await asyncio.to_thread(nats_server.kill)
        await asyncio.to_thread(nats_server.start)
        await bus.tick(seconds=BRIEF_S)
        ticks += 2
        found = await results(bus, ticks, 60)
        assert at_once(found) == 0
    for each in (first, second):
        assert each.process.poll() is None


async def test_two_processes_on_one_line_take_turns_even_when_one_is_killed(bus: Bus, start: Start) -> None:
    """Never two tests at once; the second has the line as soon as the first is gone for good, and nothing is lost."""
    first, second = start("runner"), start("runner")
    ticks = [await bus.tick(seconds=0.3) for _ in range(4)]
    assert at_once(await results(bus, 4)) == 0
    long = await bus.tick(seconds=8)
    await until(lambda: busy(bus))
    one, other = (first, second) if first.metric("refresher_run_wait_seconds_count") else (second, first)
    assert other.metric("refresher_run_wait_seconds_count") == 0, "one of them has the line"
    one.kill()
    ticks.append(await bus.tick(seconds=BRIEF_S))
    # the pin is lost after a silence, and then what the first one had been handed is delivered again
    found = await results(bus, 6, UNPINNED_AFTER_S + 60)
    assert {result.run_id for result in found[-2:]} == {ticks[-1].run_id, long.run_id}
    assert {result.runner for result in found[-2:]} & {result.runner for result in found[:4]} == set()
    assert at_once(found) == 0


async def test_a_runner_that_leaves_hands_the_line_over_at_once(bus: Bus, start: Start) -> None:
    """SIGTERM: what waited, and what was being measured, is the other's without waiting for a silence."""
    first, second = start("runner"), start("runner")
    await bus.tick(seconds=30)
    await until(lambda: busy(bus))
    waiting = await bus.tick(seconds=BRIEF_S)
    one = first if first.metric("refresher_run_wait_seconds_count") else second
    before = time.monotonic()
    one.stop()
    other = second if one is first else first
    await until(lambda: busy(bus))
    assert time.monotonic() - before < UNPINNED_AFTER_S
    assert other.metric("refresher_ticks_redelivered_total") >= 1
    assert waiting.run_id not in {result.run_id for result in await results(bus, 0)}, "it waits for the long one again"


async def test_two_lines_of_a_site_measure_side_by_side(bus: Bus, start: Start) -> None:
    """Each takes the ticks of its own line alone; results, heartbeats and rows say which it was."""
    for line in ("fibre", "lte"):
        await provision_runner(bus.js, "home", line)
        start("runner", REFRESHER_LINE=line, REFRESHER_LABELS="fast, ipv6")
    for line in ("fibre", "lte"):
        await bus.tick(seconds=2, tick={"line": line, "labels": ("ipv6",)})
    await until(lambda: busy(bus, 2))
    found = await results(bus, 2)
    assert sorted(str(result.line) for result in found) == ["fibre", "lte"]
    assert at_once(found) == 1
    assert kinds(found) == [(Status.SUCCEEDED, None)] * 2
    for line in ("fibre", "lte"):
        assert (await bus.js.consumer_info(subjects.TICKS, f"runner-home+{line}")).num_pending == 0


async def test_a_label_that_the_runner_lacks_is_told(bus: Bus, start: Start) -> None:
    """Waiting would not give it one."""
    start("runner", REFRESHER_LABELS="fast")
    await bus.tick(tick={"labels": ("fast", "ipv6")})
    (result,) = await results(bus, 1)
    assert kinds([result]) == [(Status.FAILED, "no_label")]
    assert result.failure
    assert "'ipv6'" in result.failure.message


async def test_a_run_that_finds_the_line_busy_does_as_its_schedule_says(bus: Bus, start: Start) -> None:
    """Skip: not at all. Queue one: unless another one waits. Queue all: in order. All of one line, whatever asked for them."""
    start("runner")
    first = await bus.tick(seconds=3)
    await until(lambda: busy(bus))
    skipped = await bus.tick(seconds=BRIEF_S, tick={"overlap": "skip"})
    queued = await bus.tick(seconds=BRIEF_S, tick={"overlap": "queue_one"})
    crowded = await bus.tick(seconds=BRIEF_S, tick={"overlap": "queue_one"})
    patient = await bus.tick(seconds=BRIEF_S)
    found = {result.run_id: result for result in await results(bus, 5)}
    order = [result.run_id for result in await results(bus, 5)]
    assert order == [each.run_id for each in (skipped, crowded, first, queued, patient)]
    assert kinds([found[each] for each in order]) == [
        *((Status.SKIPPED, "line_busy"), (Status.SKIPPED, "line_busy"), (Status.SUCCEEDED, None)),
        *((Status.SUCCEEDED, None), (Status.SUCCEEDED, None)),
    ]
    assert found[skipped.run_id].started_at is None
    assert at_once(list(found.values())) == 0


@pytest.mark.parametrize("overlap", ["skip", "queue_one", "cancel_other"])
async def test_what_comes_too_late_keeps_nobody_from_measuring(bus: Bus, start: Start, overlap: str) -> None:
    """After an outage of the runner: the line is idle, whatever has expired, and the reason is not that it was busy."""
    late = [await bus.tick(expires_in_s=-1, seconds=BRIEF_S, tick={"overlap": overlap}) for _ in range(2)]
    valid = await bus.tick(seconds=1, tick={"overlap": overlap})
    start("runner")
    found = {result.run_id: result for result in await results(bus, 3)}
    assert kinds([found[each.run_id] for each in (*late, valid)]) == [
        *((Status.MISSED, "runner_offline"), (Status.MISSED, "runner_offline")),
        (Status.SUCCEEDED, None),
    ]
    long = await bus.tick(seconds=2)
    await until(lambda: busy(bus))
    await bus.tick(expires_in_s=-1, seconds=BRIEF_S, tick={"overlap": overlap})
    found = {result.run_id: result for result in await results(bus, 5)}
    assert found[long.run_id].status == Status.SUCCEEDED, "nothing is cut short for a run that cannot start"


async def test_a_run_that_was_begun_in_time_and_comes_back_too_late_is_lost(bus: Bus, start: Start) -> None:
    """Its runner was stopped in the middle: the line was not busy, and a runner was there."""
    first = start("runner")
    await bus.tick(seconds=60, expires_in_s=1)
    await until(lambda: busy(bus))
    await asyncio.sleep(1)
    first.stop()
    start("runner")
    assert kinds(await results(bus, 1)) == [(Status.MISSED, "lost")]


async def test_one_waits_also_where_both_come_at_once(bus: Bus, start: Start) -> None:
    """When a runner takes over: one is next, and one may wait; a third may not."""
    ticks = [await bus.tick(seconds=BRIEF_S, tick={"overlap": "queue_one"}) for _ in range(3)]
    start("runner")
    found = {result.run_id: result for result in await results(bus, 3)}
    assert kinds([found[each.run_id] for each in ticks]) == [
        *((Status.SUCCEEDED, None), (Status.SUCCEEDED, None)),
        (Status.SKIPPED, "line_busy"),
    ]


async def test_a_result_on_its_way_is_not_thrown_away_by_a_stop(bus: Bus) -> None:
    """It gets a moment to reach the stream; a runner that threw it away would hand its tick back, to be measured again or missed."""
    published: list[Result] = []
    is_publishing, go_on = asyncio.Event(), asyncio.Event()

    async def measure(offer: Offer) -> Result:
        return not_run(offer.tick, "runner-1", offer.attempt, Status.SKIPPED, Failure(kind="line_busy", message="of the test"))

    async def publish(results: Sequence[Result]) -> None:
        is_publishing.set()
        await go_on.wait()
        published.extend(results)

    tick = await bus.tick()
    claims = Claims(lambda: (bus.client, bus.js), "runner-1", ("home", None), (), ())
    line = Line("runner-1", measure, publish, claims)
    running = asyncio.create_task(line.run())
    async with Pull(bus.client, bus.js, subjects.TICKS, "runner-home", batch=1, group=PIN_GROUP) as pull:
        await line.offer([Offer(tick, *(await pull.next()))])
        await is_publishing.wait()
        stopping = asyncio.create_task(line.stop())
        await asyncio.sleep(0.1)
        go_on.set()
        await stopping
        running.cancel()
        assert [result.run_id for result in published] == [tick.run_id]

        async def is_acknowledged() -> bool:
            info = await bus.js.consumer_info(subjects.TICKS, "runner-home")
            return not info.num_ack_pending and not info.num_redelivered

        await until(is_acknowledged)


async def test_a_run_may_cut_another_one_short(bus: Bus, start: Start) -> None:
    """The one that is cut short is a row that says so; the other starts at once, before those that wait."""
    start("runner")
    long = await bus.tick(seconds=60)
    await until(lambda: busy(bus))
    waiting = await bus.tick(seconds=BRIEF_S)
    urgent = await bus.tick(seconds=BRIEF_S, tick={"overlap": "cancel_other"})
    found = await results(bus, 3)
    assert [result.run_id for result in found] == [each.run_id for each in (long, urgent, waiting)]
    assert kinds(found) == [(Status.SKIPPED, "cancelled"), (Status.SUCCEEDED, None), (Status.SUCCEEDED, None)]
    assert found[0].started_at


async def test_the_highest_priority_goes_first(bus: Bus, start: Start) -> None:
    """Of those that wait; among equals the first that came."""
    start("runner")
    first = await bus.tick(seconds=3)
    await until(lambda: busy(bus))
    others = [await bus.tick(seconds=BRIEF_S, tick={"priority": priority}) for priority in (0, 5, 9, 5)]
    order = [result.run_id for result in await results(bus, 5)]
    assert order == [each.run_id for each in (first, others[2], others[1], others[3], others[0])]


async def test_who_waits_for_too_long_is_told_in_time(bus: Bus, start: Start) -> None:
    """Missed as soon as it is too late, not when the line is free at last."""
    start("runner")
    long = await bus.tick(seconds=8)
    await until(lambda: busy(bus))
    late = await bus.tick(expires_in_s=1, seconds=BRIEF_S)
    found = await results(bus, 2)
    assert [result.run_id for result in found] == [late.run_id, long.run_id]
    assert kinds(found) == [(Status.MISSED, "expired"), (Status.SUCCEEDED, None)]


async def test_a_fallback_measures_when_the_first_engine_failed(bus: Bus, start: Start) -> None:
    """One row of the engine that measured, which names the one that failed; when both fail, both reasons are told."""
    start("runner")
    await bus.tick("teleport", tick={"fallback": {"engine": "noop"}})
    await bus.tick("teleport", tick={"fallback": {"engine": "noop", "options": {"second": 1}}})
    saved, lost = await results(bus, 2)
    assert (saved.status, saved.engine, saved.fallback_for) == (Status.SUCCEEDED, "noop", "teleport")
    assert saved.log.startswith("teleport failed: no_engine: ")
    assert (lost.status, lost.engine, lost.fallback_for) == (Status.FAILED, "teleport", None)
    assert lost.failure
    assert "no_engine" in lost.failure.kind
    assert "the fallback noop failed too: misconfigured: " in lost.failure.message
