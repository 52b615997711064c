"""Publishing once, against a real server."""

import asyncio
from datetime import UTC, datetime

import pytest
from nats.js.errors import APIError

from shared import subjects
from shared.provision import STREAMS
from shared.publish import BY_THEMSELVES, TOGETHER, Batch, Message, publish, publish_together, publish_until_stored
from tests.integration.conftest import Bus
from tests.servers import Nats

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


def batch(*numbers: int) -> list[Message]:
    """Return messages with these numbers."""
    return [Message(f"{SUBJECT}{number}", str(number).encode(), f"id-{number}", {"Nats-TTL": "60s"}) for number in numbers]


async def test_many_are_published_together(bus: Bus) -> None:
    """All in one batch, in order, with their headers; the server forgets them when it is told to."""
    assert await publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(100))) == [True] * 100
    stored = await bus.messages(subjects.TICKS)
    assert [message.data for message in stored] == [str(number).encode() for number in range(100)]
    assert stored[0].headers
    assert stored[0].headers["Nats-TTL"] == "60s"
    assert "Nats-Batch-Commit" in (stored[-1].headers or {})


@pytest.mark.parametrize("number", [2, BY_THEMSELVES + 1, TOGETHER])
async def test_a_batch_is_in_no_other_stream_than_its_own(bus: Bus, number: int) -> None:
    """Whichever stream the subjects belong to: what was meant for another one is not taken for stored."""
    meant = asyncio.create_task(publish_together(bus.client, bus.js, subjects.RESULTS, batch(*range(number))))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(meant, 1)
    assert await bus.count(subjects.TICKS) == 0


async def test_a_batch_is_of_one_stream(bus: Bus) -> None:
    """What belongs to another one is in none, however right the last of them is."""
    ticks, result = batch(*range(20)), Message(subjects.result("home", None), b"{}", "result")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(publish_together(bus.client, bus.js, subjects.RESULTS, [*ticks, result]), 1)
    assert await bus.count(subjects.TICKS) == 0
    assert await bus.count(subjects.RESULTS) == 1


@pytest.mark.parametrize("number", [4, 20])
async def test_what_is_there_already_keeps_nothing_else_out(bus: Bus, number: int) -> None:
    """The server refuses a whole batch: the others are published all the same, and it is known which are new."""
    assert await publish_together(bus.client, bus.js, subjects.TICKS, batch(1, 2)) == [True, True]
    new = await publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(number)))
    assert new == [True, False, False] + [True] * (number - 3)
    other = [Message(f"{SUBJECT}{each}", b"from a replica that was frozen", f"other-{each}") for each in range(number + 1)]
    assert await publish_together(bus.client, bus.js, subjects.TICKS, other) == [False] * number + [True]
    assert await bus.count(subjects.TICKS) == number + 1


async def test_one_that_is_there_already_holds_up_few_others(bus: Bus) -> None:
    """Of a thousand messages the most are still written together, in order, as many at once as the server allows."""
    assert await publish_together(bus.client, bus.js, subjects.TICKS, batch(550)) == [True]
    new = await publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(TOGETHER)))
    assert new == [number != 550 for number in range(TOGETHER)]
    stored = [await bus.js.get_msg(subjects.TICKS, sequence) for sequence in range(1, TOGETHER + 1)]
    assert {message.data for message in stored} == {str(number).encode() for number in range(TOGETHER)}
    assert sum("Nats-Batch-Commit" in (message.headers or {}) for message in stored) == 9
    assert sum("Nats-Batch-Id" not in (message.headers or {}) for message in stored) == 100


async def test_as_many_as_the_server_allows_are_one_batch(bus: Bus) -> None:
    """A burst is written to the disk as few times as can be."""
    assert all(await publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(TOGETHER))))
    stored = [await bus.js.get_msg(subjects.TICKS, sequence) for sequence in range(1, TOGETHER + 1)]
    assert ["Nats-Batch-Commit" in (message.headers or {}) for message in stored] == [False] * (TOGETHER - 1) + [True]


async def test_a_batch_that_is_open_is_seen_by_nobody_and_hinders_nobody(bus: Bus) -> None:
    """Two replicas have the same messages in hand, one is killed: the other's are stored. A third is told that they are there."""
    killed, other, late = [await Batch.opened(bus.client, subjects.TICKS, batch(*range(20))) for _ in range(3)]
    await bus.client.flush()
    assert await bus.count(subjects.TICKS) == 0
    assert all(await publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(20)), other))
    assert {(message.headers or {})["Nats-Batch-Id"] for message in await bus.messages(subjects.TICKS)} == {other.id}
    assert await publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(20)), late) == [False] * 20
    assert not await killed.commit()


async def test_a_batch_that_the_server_forgot_is_published_all_the_same(bus: Bus, nats_server: Nats) -> None:
    """It was restarted in the meantime: it refuses what it has only the last of, and then gets all of them."""
    forgotten = await Batch.opened(bus.client, subjects.TICKS, batch(*range(20)))
    await bus.client.flush()
    nats_server.kill()
    nats_server.start()
    assert await publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(20)), forgotten) == [True] * 20
    assert await bus.count(subjects.TICKS) == 20


async def test_two_replicas_at_once_publish_each_once(bus: Bus) -> None:
    """Whoever is faster: every message is there once, and exactly one of them hears that it was new."""
    both = await asyncio.gather(*(publish_together(bus.client, bus.js, subjects.TICKS, batch(*range(100))) for _ in range(4)))
    assert [sum(new) for new in zip(*both, strict=True)] == [1] * 100
    assert await bus.count(subjects.TICKS) == 100
