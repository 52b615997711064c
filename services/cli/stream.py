"""The stream of results as it is now, read to its end with a consumer of one's own: the recorder's is not touched."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from services.cli import target
from services.cli.checks.bus import reached
from shared import subjects
from shared.connect import NATS_AWAY
from shared.errors import ConfigurationError, MessagesLost, RefresherError
from shared.pull import Pull

BATCH = 1_000
SILENCE_S = 5.0
FORGOTTEN_AFTER_S = 300.0
"""A consumer that nobody deleted, since its process was killed, is removed by the server after so long."""


class Reading:
    """What is in the stream now, batch by batch."""

    def __init__(self, client: Client, js: JetStreamContext, consumer: str, messages: int, last: int) -> None:
        self._client, self._js, self._consumer, self._last = client, js, consumer, last
        self.messages = messages
        """How many there are to read."""

    async def batches(self) -> AsyncIterator[list[Msg]]:
        """Yield the messages in their order, up to the last that was there when the reading began.

        Raises: RefresherError when one was lost on the way, Unavailable when the server does not answer.
        """
        left = self.messages
        async with Pull(self._client, self._js, subjects.RESULTS, self._consumer, batch=BATCH, repeats=False) as pull:
            while left:
                messages = await self._next(pull)
                if not messages:  # a slow server, or what was left has become too old meanwhile and is gone
                    left = await self._pending()
                    continue
                left = messages[-1].metadata.num_pending
                wanted = [message for message in messages if message.metadata.sequence.stream <= self._last]
                if wanted:
                    yield wanted
                if len(wanted) < len(messages):
                    return

    async def _next(self, pull: Pull) -> list[Msg]:
        with reached(target.nats_url()):
            try:
                async with asyncio.timeout(SILENCE_S):
                    return await pull.next()
            except TimeoutError:
                return []
            except MessagesLost as error:
                raise RefresherError(f"{error}: run the command again, it does no harm.") from None

    async def _pending(self) -> int:
        with reached(target.nats_url()):
            return (await self._js.consumer_info(subjects.RESULTS, self._consumer)).num_pending or 0


@asynccontextmanager
async def reading(client: Client, since: datetime | None) -> AsyncIterator[Reading]:
    """Begin to read the results that were published at a time or later, or all.

    Raises: ConfigurationError when there is no such stream, RefresherError and Unavailable as `reached` does.
    """
    js = client.jetstream(timeout=5)
    config = ConsumerConfig(
        name=f"replay-{secrets.token_hex(4)}",
        deliver_policy=DeliverPolicy.BY_START_TIME if since else DeliverPolicy.ALL,
        opt_start_time=since,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=FORGOTTEN_AFTER_S,
        mem_storage=True,
        num_replicas=1,
    )
    with reached(target.nats_url()):
        try:
            last = (await js.stream_info(subjects.RESULTS)).state.last_seq
        except NotFoundError:
            raise ConfigurationError("this NATS server has no results: does REFRESHER_NATS_URL name the right one?") from None
        consumer = await js.add_consumer(subjects.RESULTS, config)
    try:
        yield Reading(client, js, consumer.name, consumer.num_pending or 0, last)
    finally:
        with suppress(*NATS_AWAY):
            await js.delete_consumer(subjects.RESULTS, consumer.name)
