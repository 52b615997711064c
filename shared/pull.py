"""A pull subscription that waits without polling, returns what there is at once, and knows when its consumer is gone.

nats-py's `fetch` either waits for a full batch or pays two round trips per call; both show in the latency of a single
message. This one keeps one request open at the server. Only nats-py's public API is used.
Protocol: NATS ADR-13 (pull subscribe) and ADR-37 (idle heartbeats).
"""

import asyncio
import json
import time
from collections import deque
from types import TracebackType
from typing import Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from shared.connect import NATS_AWAY
from shared.errors import ConsumerGone
from shared.waiting import happens

EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
SILENCE_S = 2.5 * HEARTBEAT_S
"""After this long without a word the request is lost and is made again."""
LOOK_EVERY_S = 1.0
"""How soon a reconnection is noticed: a restarted server has forgotten the request, and perhaps the consumer."""


class Pull:
    """The messages of a durable or ephemeral pull consumer, in batches of at most `batch`.

    `async with Pull(...) as pull: messages = await pull.next()`
    """

    def __init__(self, client: Client, js: JetStreamContext, stream: str, consumer: str, *, batch: int) -> None:
        self._client, self._js = client, js
        self._stream, self._consumer, self._batch = stream, consumer, batch
        self._messages: deque[Msg] = deque()
        self._owed = 0
        self._heard_at = 0.0
        self._reconnects = 0
        self._doubt = False
        self._wake = asyncio.Event()
        self._inbox = ""
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(self._inbox, cb=self._receive)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._subscription and not self._client.is_closed:
            await self._subscription.unsubscribe()

    async def next(self) -> list[Msg]:
        """Wait for messages and return all that have arrived; meanwhile the next ones are on their way.

        Raises: ConsumerGone when the consumer or its stream was deleted. While the server is away it waits.
        """
        while True:
            if self._doubt:
                await self._check()
            if self._owed <= 0:
                await self._request()
            if self._messages:
                taken = list(self._messages)
                self._messages.clear()
                return taken
            self._wake.clear()
            if not await happens(self._wake, LOOK_EVERY_S):
                self._doubt = self._client.stats["reconnects"] > self._reconnects or time.monotonic() - self._heard_at > SILENCE_S

    async def _request(self) -> None:
        want = {"batch": self._batch, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        self._owed, self._heard_at, self._reconnects = self._batch, time.monotonic(), self._client.stats["reconnects"]
        await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}", json.dumps(want).encode(), self._inbox)

    async def _check(self) -> None:
        try:
            await self._js.consumer_info(self._stream, self._consumer)
        except NotFoundError:
            raise ConsumerGone(f"consumer {self._consumer} of stream {self._stream} is gone") from None
        except NATS_AWAY:
            await asyncio.sleep(0.25)  # still away: the doubt remains
            return
        self._doubt = False
        self._owed = 0

    async def _receive(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        status = message.headers.get("Status") if message.headers and not message.data else None
        if status is None:
            self._owed -= 1
            self._messages.append(message)
        elif status == "100":
            return
        else:
            # 404 and 408 end a request in the ordinary way; 409 and 503 may mean that the consumer is gone
            self._owed = 0
            self._doubt = self._doubt or status not in {"404", "408"}
        self._wake.set()
