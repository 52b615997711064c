"""Reading whole buckets on a real server."""

import pytest
from nats.js.errors import NotFoundError

from shared import subjects
from shared.buckets import entries
from tests.integration.conftest import Bus


async def test_everything_in_a_bucket_is_read(bus: Bus) -> None:
    """In order, with value and revision; what was deleted or replaced is gone; keys that nats-py refuses count, too."""
    store = await bus.js.key_value(subjects.SCHEDULES)
    assert await entries(bus.js, subjects.SCHEDULES) == []
    for number in range(250):
        await store.put(f"key-{number:03}", str(number).encode())
    await store.delete("key-007")
    revision = await store.put("key-008", b"new")
    await bus.js.publish(f"$KV.{subjects.SCHEDULES}.odd!", b"?")
    found = await entries(bus.js, subjects.SCHEDULES)
    assert [entry.key for entry in found] == [f"key-{number:03}" for number in range(250) if number != 7] + ["odd!"]
    assert (found[7].value, found[7].revision) == (b"new", revision)


async def test_reading_leaves_nothing_behind(bus: Bus) -> None:
    """However often somebody looks, no consumer stays on the server: a stream has room for 1,000."""
    await (await bus.js.key_value(subjects.SCHEDULES)).put("key", b"")
    for _ in range(20):
        assert len(await entries(bus.js, subjects.SCHEDULES)) == 1
    assert (await bus.js.stream_info(f"KV_{subjects.SCHEDULES}")).state.consumer_count == 0


async def test_a_bucket_that_is_not_there(bus: Bus) -> None:
    """An error, not an empty answer."""
    with pytest.raises(NotFoundError):
        await entries(bus.js, "nothing")
