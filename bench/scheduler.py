"""Many schedules: how late their ticks are, and what the scheduler needs. `make bench-scheduler`.

N one-minute schedules with their phases spread over the minute are put on a NATS server that writes every message to disk
(`sync_interval: always`), R replicas of the scheduler are started, and their ticks of three minutes are counted.
`python -m bench.scheduler 10000x1 100000x2` measures other numbers.
"""

import asyncio
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import psutil
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy

from bench.machine import describe
from shared import subjects
from shared.events import Tick
from shared.provision import provision
from shared.schedules import Interval, Schedule
from tests.servers import Nats
from tests.services import ServiceProcess

MINUTES = 3
PUT_AT_ONCE = 500


async def put(js: JetStreamContext, count: int) -> None:
    """Store one-minute schedules, their phases spread over the minute; they have been active for an hour."""
    since = datetime.now(UTC) - timedelta(hours=1)
    for start in range(0, count, PUT_AT_ONCE):
        futures = []
        for number in range(start, min(start + PUT_AT_ONCE, count)):
            timing = Interval(every_s=60, phase_s=number % 60)
            schedule = Schedule(name=f"s{number}", engine="noop", timing=timing, active_since=since, start_within_s=30)
            futures.append(await js.publish_async(f"$KV.{subjects.SCHEDULES}.{schedule.name}", schedule.model_dump_json().encode()))
        await asyncio.gather(*futures)


async def first_tick_after(js: JetStreamContext, started: float) -> float:
    """Return how long after a moment the first tick was in the stream."""
    while not (await js.stream_info(subjects.TICKS)).state.last_seq:
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def lateness(js: JetStreamContext, since: datetime, until: datetime) -> list[float]:
    """Return how late each tick due in a period was in the stream, in ms, sorted; by the server's clock, which is this machine's."""
    subscription = await js.subscribe(subjects.ALL_TICKS, ordered_consumer=True, deliver_policy=DeliverPolicy.ALL)
    late: dict[str, float] = {}
    while True:
        try:
            message = await subscription.next_msg(5)
        except TimeoutError:
            break
        tick = Tick.model_validate_json(message.data)
        if since <= tick.due_at < until:
            late[message.subject] = (message.metadata.timestamp - tick.due_at).total_seconds() * 1e3
        if message.metadata.num_pending == 0:
            break
    await subscription.unsubscribe()
    return sorted(late.values())


async def measure(directory: Path, count: int, replicas: int) -> str:
    """Return a row of the table."""
    server = Nats(directory)
    client = await nats.connect(server.url)
    js = client.jetstream(timeout=30)
    await provision(js)
    await put(js, count)
    started = time.monotonic()
    schedulers = [ServiceProcess("scheduler", directory, server.url, REFRESHER_LOG_LEVEL="warning") for _ in range(replicas)]
    first_s = await first_tick_after(js, started)
    await asyncio.to_thread(lambda: [scheduler.wait_until_ready(120) for scheduler in schedulers])
    await asyncio.sleep(90)  # every schedule has been caught up and has settled into its minute
    processes = [psutil.Process(scheduler.process.pid) for scheduler in schedulers]
    since = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    until = since + timedelta(minutes=MINUTES)
    await asyncio.sleep((since - datetime.now(UTC)).total_seconds())
    before = [sum(process.cpu_times()[:2]) for process in processes]
    await asyncio.sleep((until - datetime.now(UTC)).total_seconds())
    cpu = max(sum(process.cpu_times()[:2]) - was for process, was in zip(processes, before, strict=True)) / (60 * MINUTES)
    memory = max(process.memory_info().rss for process in processes)
    await asyncio.sleep(5)
    late = await lateness(js, since, until)
    for scheduler in schedulers:
        scheduler.stop()
    await client.close()
    server.stop()
    p50, p99 = late[len(late) // 2], late[int(len(late) * 0.99)]
    return (
        f"| {count:,} × {replicas} | {len(late):,} of {count * MINUTES:,} | {p50:.0f} | {p99:.0f} | {late[-1]:.0f} "
        f"| {cpu:.0%} | {memory / 2**20:.0f} MiB | {first_s:.1f} s |"
    )


async def main(wanted: list[str]) -> None:
    """Measure each combination and print the table."""
    print(describe())
    print("| schedules × replicas | ticks | late p50 (ms) | p99 | max | CPU of a core, each | memory, each | start to first tick |")
    print("|---|---|---|---|---|---|---|---|")
    for each in wanted:
        count, replicas = map(int, each.split("x"))
        with tempfile.TemporaryDirectory() as directory:
            print(await measure(Path(directory), count, replicas), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["1000x1", "10000x1", "10000x2", "100000x1"]))
