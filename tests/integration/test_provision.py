"""What the scheduler makes on the bus, where something is there already or nothing fits in."""

import asyncio
from pathlib import Path

import nats

from shared import subjects
from shared.provision import STREAMS, differing, provision
from tests.integration.conftest import Bus, until
from tests.servers import Nats
from tests.services import ServiceProcess

TICKS = next(stream for stream in STREAMS if stream.name == subjects.TICKS)


async def test_limits_that_were_raised_stay(bus: Bus) -> None:
    """An operator's larger stream is not cut by the next start of a scheduler; a smaller one is brought up to what is needed."""
    assert TICKS.max_bytes
    for changed, kept in (
        ({"max_bytes": 2 * TICKS.max_bytes}, {"max_bytes": 2 * TICKS.max_bytes, "max_age": TICKS.max_age}),
        ({"max_age": 0}, {"max_bytes": TICKS.max_bytes, "max_age": 0}),
        ({"max_bytes": TICKS.max_bytes // 2, "max_age": 3600}, {"max_bytes": TICKS.max_bytes, "max_age": TICKS.max_age}),
    ):
        await bus.js.update_stream(TICKS.evolve(num_replicas=1, **changed))
        await provision(bus.js)
        found = (await bus.js.stream_info(subjects.TICKS)).config
        assert {name: getattr(found, name) or 0 for name in kept} == kept
        assert differing(TICKS, found) == ""


async def test_a_server_without_room_is_waited_for(tmp_path: Path) -> None:
    """The scheduler says which stream has no room and what to do, and goes on as soon as there is some."""
    nats_server = Nats(tmp_path)
    right = nats_server.configuration.read_text()
    assert "jetstream {" in right
    nats_server.kill()
    nats_server.configuration.write_text(right.replace("jetstream {", "jetstream { max_file_store: 1GB,"))
    nats_server.start()
    scheduler = ServiceProcess("scheduler", tmp_path, nats_server.url)

    async def waits() -> bool:
        return '"what": "stream RESULTS", "reason": "the server has no room left for 1024 MiB: give JetStream' in scheduler.log.read_text()

    try:
        await until(waits, 20)
        nats_server.kill()
        nats_server.configuration.write_text(right)
        nats_server.start()
        scheduler.wait_until_ready(40)
    finally:
        scheduler.stop()
        nats_server.stop()


async def test_a_server_with_just_enough_room_is_enough_again(tmp_path: Path) -> None:
    """What is there already needs no more room: a scheduler that is started anew does not wait for what it has."""
    nats_server = Nats(tmp_path)
    nats_server.kill()
    needed = sum(stream.max_bytes or 0 for stream in STREAMS)
    nats_server.configuration.write_text(
        nats_server.configuration.read_text().replace("jetstream {", f"jetstream {{ max_file_store: {needed + 2**20},")
    )
    nats_server.start()
    client = await nats.connect(nats_server.url)
    try:
        for _ in range(2):
            await asyncio.wait_for(provision(client.jetstream()), 10)
    finally:
        await client.close()
        nats_server.stop()
