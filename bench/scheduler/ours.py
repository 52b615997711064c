"""Refresher's scheduler on a NATS server that writes every tick to disk before it acknowledges it."""

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import psutil
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from bench.scheduler.fires import Burst, Fire, Measured, Minute, within
from shared import due, subjects
from shared.provision import provision
from shared.pull import Pull
from shared.schedules import Cron, Interval, Once, Schedule
from tests.servers import Nats, running
from tests.services import ServiceProcess

MIXED_FROM = 100_000
"""From so many on half of the schedules are crons."""
PUT_AT_ONCE = 1_000
BURST = 10_000
"""So many at most are due at once."""
SETTLES_S, CAUGHT_UP_A_SECOND = 10.0, 10_000
"""What it is given for what was overdue at its start, once it has read its schedules."""
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Tokyo",
    "UTC",
    "Africa/Cairo",
)


def schedules(count: int) -> Iterator[Schedule]:
    """Yield schedules that have been active for an hour: one-minute intervals with their phases spread over the minute.

    Where there are many, half run every 30 s, and half are crons in eight zones, hourly or daily: again one run a minute each on
    average.
    """
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    mixed = count >= MIXED_FROM
    for number in range(count):
        timing: Interval | Cron = Interval(every_s=30 if mixed else 60, phase_s=number % 60 if not mixed else number // 2 % 30)
        if mixed and number % 2:
            hour = "*" if number % 4 == 1 else str(number // 120 % 5 * 5)
            timing = Cron(expression=f"{number // 2 % 60} {hour} * * *", zone=ZONES[number // 600 % len(ZONES)])
        yield Schedule(name=f"s{number}", engine="noop", timing=timing, active_since=since, start_within_s=30)


async def put(js: JetStreamContext, wanted: list[Schedule]) -> None:
    """Store schedules as the API does."""
    for start in range(0, len(wanted), PUT_AT_ONCE):
        part = wanted[start : start + PUT_AT_ONCE]
        stored = [
            await js.publish_async(f"$KV.{subjects.SCHEDULES}.{each.name}", each.model_dump_json().encode(), wait_stall=30) for each in part
        ]
        await asyncio.gather(*stored)


async def fires(client: Client, js: JetStreamContext) -> list[Fire]:
    """Return every tick in the stream with the time at which the server stored it."""
    consumer = await js.add_consumer(subjects.TICKS, ConsumerConfig(ack_policy=AckPolicy.NONE, headers_only=True, mem_storage=True))
    left, found = consumer.num_pending or 0, []
    async with Pull(client, js, subjects.TICKS, consumer.name, batch=1_000) as pull:
        while left:
            for message in await pull.next():
                *_, name, instant = message.subject.split(".")
                found.append(Fire(name, float(instant), message.metadata.timestamp.timestamp()))
            left = message.metadata.num_pending
    return found


def _loaded_s(log: Path) -> float | None:
    told = (json.loads(line) for line in log.read_text().splitlines())
    return next((each["took_s"] for each in told if each.get("action") == "schedules read"), None)


async def _watch(scheduler: ServiceProcess, count: int, seconds: int) -> tuple[datetime, datetime, float, int]:
    """Let it catch up and settle, then return a period, and what it used in it: a share of one core, and bytes."""
    process = psutil.Process(scheduler.process.pid)
    while _loaded_s(scheduler.log) is None:
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLES_S + count / CAUGHT_UP_A_SECOND)
    since = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    await asyncio.sleep((since - datetime.now(UTC)).total_seconds() - 0.5)
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(seconds)
    cpu = (sum(process.cpu_times()[:2]) - before) / seconds
    return since, since + timedelta(seconds=seconds - 1), cpu, process.memory_full_info().pss


async def _all_at_once(js: JetStreamContext, count: int) -> datetime:
    """Have more schedules become due at one instant, a while after the last of them was put; return that instant, now over."""
    now = datetime.now(UTC).replace(microsecond=0)
    instant = now + timedelta(seconds=8 + count // 600)
    once = [
        Schedule(name=f"b{number}", engine="noop", timing=Once(at=instant), active_since=now, start_within_s=30) for number in range(count)
    ]
    await put(js, once)
    late_s = (datetime.now(UTC) - instant).total_seconds()
    assert late_s < -3, f"{count} schedules were stored {late_s + 3:.1f} s too late for their instant"
    await asyncio.sleep(8 - late_s)
    return instant


async def measure(directory: Path, count: int, seconds: int) -> Measured:
    """Fill a server, start a scheduler, watch it for a while, and then give it a burst."""
    with running(Nats(directory)) as server:
        return await _measured(server, directory, count, seconds)


async def _measured(server: Nats, directory: Path, count: int, seconds: int) -> Measured:
    durable = server.configuration.read_text()
    server.stop()
    server.configuration.write_text(durable.replace(", sync_interval: always", ""))  # to fill it is not what is measured
    server.start()
    client = await nats.connect(server.url)
    await provision(client.jetstream(timeout=30))
    wanted = list(schedules(count))
    await put(_patient(client), wanted)
    await client.close()
    server.stop()
    server.configuration.write_text(durable)
    server.start()
    started_at = time.time()
    scheduler = ServiceProcess("scheduler", directory, server.url)
    try:
        await asyncio.to_thread(scheduler.wait_until_ready, 60)
        since, until, cpu, memory = await _watch(scheduler, count, seconds)
        client = await nats.connect(server.url)
        at_once = await _all_at_once(_patient(client), min(count, BURST))
    finally:
        scheduler.stop()
    found = await fires(client, client.jetstream(timeout=30))
    await client.close()
    first = min(fire.at for fire in found) - started_at
    last = [fire.at for fire in found if fire.schedule.startswith("b")]
    due_in_it = sum(1 for each in wanted for _ in _instants(each, since, until))
    minute = Minute(due_in_it, within(found, since.timestamp(), until.timestamp()), cpu, memory)
    return Measured("Refresher", first, Burst(len(last), max(last) - at_once.timestamp()), minute, _loaded_s(scheduler.log))


def _patient(client: Client) -> JetStreamContext:
    return client.jetstream(timeout=30, publish_async_max_pending=PUT_AT_ONCE)


def _instants(schedule: Schedule, since: datetime, until: datetime) -> Iterator[datetime]:
    moment = since - timedelta(microseconds=1)
    while (moment := due.following(schedule, "home", moment) or until) < until:
        yield moment
