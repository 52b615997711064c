"""Publishing once, against a real server."""

import asyncio
from datetime import UTC, datetime

import pytest
from nats.js.errors import APIError

from shared import subjects
from shared.provision import STREAMS
from shared.publish import publish, publish_until_stored
from tests.integration.conftest import Bus

SUBJECT = subjects.tick("home", "hourly", datetime(2026, 1, 1, tzinfo=UTC))


async def test_a_tick_exists_once_in_the_duplicate_window_and_after_it(bus: Bus) -> None:
    """The id refuses a second one for two minutes, the subject for as long as the stream remembers."""
    assert await publish(bus.js, subjects.TICKS, SUBJECT, b"first", "id")
    assert not await publish(bus.js, subjects.TICKS, SUBJECT, b"same id", "id")
    assert not await publish(bus.js, subjects.TICKS, SUBJECT, b"as from a replica that was frozen past the window", "other id")
    (stored,) = await bus.messages(subjects.TICKS)
    assert stored.data == b"first"


@pytest.mark.parametrize("limit", [{"max_msgs": 1}, {"max_bytes": 200}])
async def test_a_full_stream_is_an_error_and_no_message_that_is_there(bus: Bus, limit: dict[str, int]) -> None:
    """The server refuses for want of room, with the same code: taken for "already there", the message would be lost."""
    await bus.js.delete_stream(subjects.TICKS)
    config = next(config for config in STREAMS if config.name == subjects.TICKS)
    await bus.js.add_stream(config.evolve(**limit))
    assert await publish(bus.js, subjects.TICKS, SUBJECT, b"x" * 50, "1")
    with pytest.raises(APIError, match="exceeded"):
        await publish(bus.js, subjects.TICKS, f"{SUBJECT}0", b"x" * 50, "2")


async def test_what_found_no_room_is_stored_once_there_is_some(bus: Bus) -> None:
    """The publisher tries again until the stream has room; nobody has to tell it."""
    await bus.js.update_stream(next(config for config in STREAMS if config.name == subjects.RESULTS).evolve(max_msgs=1))
    subject = subjects.result("home", None)
    assert await publish(bus.js, subjects.RESULTS, subject, b"1", "1")
    waiting = asyncio.create_task(publish_until_stored(bus.js, subjects.RESULTS, subject, b"2", "2"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.5)
    await bus.js.purge_stream(subjects.RESULTS)
    assert await asyncio.wait_for(waiting, 10)
    (stored,) = await bus.messages(subjects.RESULTS)
    assert stored.data == b"2"
