"""The pull loop against a real server."""

import asyncio
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from shared.errors import ConsumerGone
from shared.provision import provision
from shared.publish import publish_until_stored
from shared.pull import MOST_BYTES, Pull
from tests.servers import Nats


@pytest.fixture
async def client(nats_server: Nats) -> AsyncIterator[Client]:
    """Give a provisioned client."""
    client = await nats.connect(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    await provision(client.jetstream())
    yield client
    await client.close()


async def _publish(js: JetStreamContext, *bodies: bytes) -> None:
    for number, body in enumerate(bodies):
        await publish_until_stored(js, "RESULTS", "refresher.result.home.test", body, f"{body!r}-{number}")


async def test_messages_arrive_in_order_and_at_once(client: Client) -> None:
    """A waiting pull gets a message without polling, and a backlog in one piece."""
    js = client.jetstream()
    async with Pull(client, js, "RESULTS", "recorder", batch=10) as pull:
        waiting = asyncio.create_task(pull.next())
        before = asyncio.get_running_loop().time()
        await _publish(js, b"1")
        assert [message.data for message in await waiting] == [b"1"]
        assert asyncio.get_running_loop().time() - before < 1
        await _publish(js, *(str(n).encode() for n in range(2, 30)))
        got: list[int] = []
        while len(got) < 28:
            got += [int(message.data) for message in await asyncio.wait_for(pull.next(), 5)]
        assert got == list(range(2, 30))


async def test_a_backlog_comes_in_full_batches(client: Client) -> None:
    """With patience: each is as large as was asked for, and the last one does not wait for more."""
    js = client.jetstream()
    await _publish(js, *(b"%d" % number for number in range(250)))
    async with Pull(client, js, "RESULTS", "recorder", batch=100, patience_s=30) as pull:
        assert [len(await asyncio.wait_for(pull.next(), 10)) for _ in range(3)] == [100, 100, 50]


async def test_a_batch_that_cannot_be_filled_comes_all_the_same(client: Client) -> None:
    """The server gives no more than may be unacknowledged at once, although more is waiting: patience ends."""
    js = client.jetstream()
    few = ConsumerConfig(durable_name="few", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=3)
    await js.add_consumer("RESULTS", few)
    await _publish(js, *(b"%d" % number for number in range(5)))
    async with Pull(client, js, "RESULTS", "few", batch=100, patience_s=0.1) as pull:
        messages = await asyncio.wait_for(pull.next(), 10)
        assert len(messages) == 3
        for message in messages:
            await message.ack()
        assert len(await asyncio.wait_for(pull.next(), 10)) == 2


async def test_large_messages_come_a_few_at_a_time(client: Client) -> None:
    """However many are asked for: memory stays bounded, and the server does not drop a client that cannot keep up."""
    js = client.jetstream()
    bodies = [b"%d" % number * 800_000 for number in range(10)] * 8
    for body in bodies:
        await js.publish("refresher.result.home.test", body)
    async with Pull(client, js, "RESULTS", "recorder", batch=1_000) as pull:
        got: list[bytes] = []
        while len(got) < len(bodies):
            taken = [message.data for message in await asyncio.wait_for(pull.next(), 5)]
            assert sum(map(len, taken)) <= 2 * MOST_BYTES, "one request, and what came of the next"
            got += taken
        assert got == bodies
    assert client.stats["reconnects"] == 0


async def test_a_restarted_server_goes_on(client: Client, nats_server: Nats) -> None:
    """The server forgets an open request when it is killed; the pull makes it again."""
    js = client.jetstream()
    async with Pull(client, js, "RESULTS", "recorder", batch=10) as pull:
        waiting = asyncio.create_task(pull.next())
        await asyncio.sleep(0.1)
        nats_server.kill()
        nats_server.start()
        await _publish(js, b"after")
        assert [message.data for message in await asyncio.wait_for(waiting, 30)] == [b"after"]


async def test_a_deleted_consumer_is_noticed(client: Client) -> None:
    """A process whose consumer is gone must end and be restarted, not wait for ever."""
    js = client.jetstream()
    async with Pull(client, js, "RESULTS", "recorder", batch=10) as pull:
        waiting = asyncio.create_task(pull.next())
        await asyncio.sleep(0.1)
        await js.delete_consumer("RESULTS", "recorder")
        with pytest.raises(ConsumerGone, match="recorder"):
            await asyncio.wait_for(waiting, 5)
