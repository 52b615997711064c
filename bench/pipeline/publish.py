"""Publish ticks as the scheduler does, as told on standard input: `<number> <a second, 0: as fast as it goes> <name>` a line."""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta

import nats

from shared import subjects
from shared.events import Tick, run_id_of
from shared.publish import TOGETHER, Message, publish_together


def tick(schedule: str, site: str) -> Message:
    """Return the message of a tick that is due now."""
    now = datetime.now(UTC)
    run_id = run_id_of(schedule, site, now)
    told = Tick(
        run_id=run_id,
        site=site,
        schedule=schedule,
        trigger="schedule",
        engine="noop",
        due_at=now,
        published_at=now,
        expires_at=now + timedelta(minutes=5),
    )
    return Message(subjects.tick(site, schedule, now), told.to_json(), f"{schedule}:{site}:{int(now.timestamp())}")


async def main(sites: list[str]) -> None:
    """Answer each line with `done` when its ticks are in the stream; the sites take turns."""
    client = await nats.connect(os.environ["REFRESHER_NATS_URL"])
    js = client.jetstream()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        number, rate, name = line.split()
        at_once = 1 if float(rate) else TOGETHER
        for start in range(0, int(number), at_once):
            numbers = range(start, min(start + at_once, int(number)))
            ticks = [tick(f"{name}-{each}", sites[each % len(sites)]) for each in numbers]
            await publish_together(client, js, subjects.TICKS, ticks)
            if float(rate):
                await asyncio.sleep(1 / float(rate))
        print("done", flush=True)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
