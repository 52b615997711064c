"""From a tick published to its row readable in the API, engine noop, one at a time: `make bench-latency`.

NATS writes every message to disk before it acknowledges it (`sync_interval: always`), Postgres every commit.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import nats

from bench.machine import describe, system
from shared import subjects
from shared.events import Tick

RUNS = 500
PAUSE_S = 0.05
BAR_MS = 30.0


async def one(client: nats.aio.client.Client, api: httpx.AsyncClient) -> float:
    """Publish a tick and return how long its row took to be readable, in ms.

    The API is asked from the moment that the result passes on the bus: asking earlier takes the CPU from what is measured.
    """
    now = datetime.now(UTC)
    tick = Tick(
        run_id=uuid4(),
        site="home",
        trigger="manual",
        engine="noop",
        due_at=now,
        published_at=now,
        expires_at=now + timedelta(minutes=5),
    )
    result = await client.subscribe(subjects.ALL_RESULTS, max_msgs=1)
    await client.flush()
    started = time.perf_counter()
    await client.jetstream().publish(subjects.manual_tick("home", None, tick.run_id), tick.to_json())
    await result.next_msg(30)
    while (await api.get(f"/api/v1/results/{tick.run_id}")).status_code != httpx.codes.OK:
        await asyncio.sleep(0.001)
    return (time.perf_counter() - started) * 1e3


async def measure(nats_url: str, api_url: str) -> list[float]:
    """Return the latency of every run in ms, sorted; the first ten warm up and do not count."""
    client = await nats.connect(nats_url)
    async with httpx.AsyncClient(base_url=api_url) as api:
        taken = []
        for _ in range(RUNS + 10):
            taken.append(await one(client, api))
            await asyncio.sleep(PAUSE_S)
    await client.close()
    return sorted(taken[10:])


def main() -> int:
    """Measure and print; exit with 1 when the bar is missed."""
    sys.stdout.write(f"{describe()}\n")
    with system() as up:
        where = json.loads((up.data / "run.json").read_text())
        taken = asyncio.run(measure(where["nats_url"], where["api_url"]))
    p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
    sys.stdout.write(f"{len(taken)} runs: p50 {p50:.1f} ms, p99 {p99:.1f} ms (bar {BAR_MS:.0f} ms), max {taken[-1]:.1f} ms\n")
    return int(p99 >= BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
