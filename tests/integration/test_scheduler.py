"""The scheduler as a process, on a real server."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from shared import subjects
from shared.events import Tick, run_id_of
from tests.cutting import line_to
from tests.integration.conftest import Bus, Start, interval, until
from tests.servers import Nats, port_of


async def ticks(bus: Bus) -> list[Tick]:
    """Return all ticks in the stream."""
    return [Tick.model_validate_json(message.data) for message in await bus.messages(subjects.TICKS)]


async def test_a_schedule_ticks_at_its_instants(bus: Bus, start: Start) -> None:
    """One tick per instant and site, with all that a runner needs, and its id derived from what it is."""
    start("scheduler")
    await bus.put(interval("fast", 1, sites=("home", "office"), options={"seconds": 0.5}))
    await until(lambda: _at_least(bus, 6))
    found = await ticks(bus)
    for site in ("home", "office"):
        due = [tick.due_at for tick in found if tick.site == site]
        assert all(other - one == timedelta(seconds=1) for one, other in pairwise(due))
    tick = found[0]
    assert (tick.schedule, tick.engine, tick.options, tick.trigger) == ("fast", "noop", {"seconds": 0.5}, "schedule")
    assert tick.run_id == run_id_of("fast", tick.site, tick.due_at)
    assert tick.due_at < tick.expires_at <= tick.due_at + timedelta(seconds=2)
    subject = (await bus.messages(subjects.TICKS))[0].subject
    assert subject == f"refresher.tick.{tick.site}.fast.{int(tick.due_at.timestamp())}"


async def test_a_change_takes_effect_within_a_second(bus: Bus, start: Start) -> None:
    """Pausing, resuming and removing need no restart: they are seen as they happen."""
    scheduler = start("scheduler")
    await bus.put(interval("fast", 1))
    await until(lambda: _at_least(bus, 1))
    await bus.put(interval("fast", 1, enabled=False))
    await until(lambda: _is(scheduler.metric, 'refresher_schedules{state="paused"}', 1))
    paused = await bus.count(subjects.TICKS)
    await bus.put(interval("other", 1))
    await until(lambda: _at_least(bus, paused + 3))
    assert sum(tick.schedule == "fast" for tick in await ticks(bus)) <= paused
    await (await bus.js.key_value(subjects.SCHEDULES)).delete("other")
    await until(lambda: _is(scheduler.metric, 'refresher_schedules{state="enabled"}', 0), 1)


async def test_replicas_publish_each_instant_once(bus: Bus, start: Start) -> None:
    """Two schedulers, one killed without warning and started again: no instant is missing and none is there twice."""
    one, _ = start("scheduler"), start("scheduler")
    await bus.put(interval("fast", 1))
    await until(lambda: _at_least(bus, 2))
    one.kill()
    await until(lambda: _at_least(bus, 5))
    one.start()
    one.wait_until_ready()
    await until(lambda: _at_least(bus, 8))
    due = [tick.due_at for tick in await ticks(bus)]
    assert all(other - one == timedelta(seconds=1) for one, other in pairwise(due))


async def test_after_downtime_at_most_one_tick_is_caught_up(bus: Bus, start: Start) -> None:
    """Of ten instants that nobody published, the latest runs; starting again adds none."""
    now = datetime.now(UTC)
    await bus.put(interval("slow", 3600, active_since=now - timedelta(hours=10)))
    scheduler = start("scheduler")
    await until(lambda: _at_least(bus, 1))
    scheduler.stop()
    scheduler.start()
    scheduler.wait_until_ready()
    await until(lambda: _is(scheduler.metric, 'refresher_ticks_total{outcome="already_there",trigger="catch_up"}', 1))
    (tick,) = await ticks(bus)
    assert tick.trigger == "catch_up"
    assert now - timedelta(hours=1) <= tick.due_at <= now
    assert tick.expires_at > now


async def test_it_says_what_it_read(bus: Bus, start: Start) -> None:
    """One line tells how many schedules there were, and how long it took until all of them were planned."""
    for number in range(3):
        await bus.put(interval(f"s{number}", 3600))
    scheduler = start("scheduler")
    await until(lambda: _is(scheduler.metric, 'refresher_schedules{state="enabled"}', 3))
    (told,) = (line for line in map(json.loads, scheduler.log.read_text().splitlines()) if line["action"] == "schedules read")
    assert told["schedules"] == 3
    assert 0 < told["took_s"] < 20


async def test_an_invalid_schedule_harms_nobody_else(bus: Bus, start: Start) -> None:
    """A value that somebody wrote by hand is told in log and metrics; the others run."""
    scheduler = start("scheduler")
    bucket = await bus.js.key_value(subjects.SCHEDULES)
    await bucket.put("broken", b'{"name": "broken", "timing": {"kind": "interval", "every_s": -1}}')
    await bucket.put("misnamed", interval("other", 1).model_dump_json().encode())
    await bucket.put("garbage", b"\xff\x00")
    await bus.put(interval("good", 1))
    await until(lambda: _at_least(bus, 2))
    assert {tick.schedule for tick in await ticks(bus)} == {"good"}
    assert scheduler.metric('refresher_schedules{state="invalid"}') == 3
    told = [json.loads(line) for line in scheduler.log.read_text().splitlines()]
    assert any(line.get("schedule") == "broken" and "every_s" in line["reasons"] for line in told)


async def test_changes_are_seen_after_the_server_was_killed(bus: Bus, start: Start, nats_server: Nats) -> None:
    """The server forgets the scheduler's consumer; the schedules are read anew, those removed meanwhile included."""
    scheduler = start("scheduler")
    await bus.put(interval("fast", 1))
    await until(lambda: _at_least(bus, 1))
    nats_server.kill()
    nats_server.start()
    await until(lambda: _put(bus), 20)
    await until(lambda: _has(bus, "later"), 30)
    assert scheduler.process.poll() is None
    due = [tick.due_at for tick in await ticks(bus) if tick.schedule == "fast"]
    assert len(due) == len(set(due))


async def test_a_change_that_a_cut_line_lost_is_seen(bus: Bus, start: Start, nats_server: Nats) -> None:
    """The server has sent it and sends it no more: the schedules are read anew when the line is back."""
    stream, port = f"KV_{subjects.SCHEDULES}", port_of(nats_server.url)
    async with line_to(port) as line:
        through = nats_server.url.replace(str(port), str(line.port))
        scheduler = await asyncio.to_thread(start, "scheduler", REFRESHER_NATS_URL=through)
        await bus.put(interval("fast", 1))
        await until(lambda: _has(bus, "fast"))
        (consumer,) = [info.name for info in await bus.js.consumers_info(stream) if info.name.startswith(subjects.SCHEDULER)]
        line.freeze()
        await bus.put(interval("later", 1))

        async def is_sent() -> bool:
            delivered = (await bus.js.consumer_info(stream, consumer)).delivered
            return delivered is not None and delivered.consumer_seq == 2

        await until(is_sent)
        line.cut()
        await until(lambda: _has(bus, "later"), 20)
    assert scheduler.process.poll() is None


async def _put(bus: Bus) -> bool:
    try:
        await bus.put(interval("later", 1))
    except TimeoutError:
        return False
    return True


async def _has(bus: Bus, schedule: str) -> bool:
    return any(tick.schedule == schedule for tick in await ticks(bus))


async def _at_least(bus: Bus, number: int) -> bool:
    return await bus.count(subjects.TICKS) >= number


async def _is(metric, sample: str, value: float) -> bool:  # type: ignore[no-untyped-def]
    return bool(metric(sample) == value)
