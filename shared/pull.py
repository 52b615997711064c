"""A pull subscription that waits without polling, returns what there is at once, and knows when its consumer is gone.

nats-py's `fetch` either waits for a full batch or pays two round trips per call; both show in the latency of a single
message. This one keeps one request open at the server. Only nats-py's public API is used.
Protocol: NATS ADR-13 (pull subscribe), ADR-37 (idle heartbeats) and ADR-42 (pinned consumers).
"""

import asyncio
import json
import time
from types import TracebackType
from typing import Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from shared.connect import NATS_AWAY
from shared.errors import ConsumerGone, MessagesLost
from shared.waiting import happens

EXPIRES_S = 30.0
PINNED_EXPIRES_S = 4.0
"""Where messages go to one client alone, each request tells the server that this one is still there."""
HEARTBEAT_S = 1.0
HEARTBEATS_MISSED = 2.5
"""After so many the request is lost and is made again: as when another server of a cluster leads the consumer."""
MOST_BYTES = 8 * 2**20
"""How much is asked for at once: a server drops a client to which more than its `max_pending` is on the way, and a thousand
messages of the largest size would fill a gigabyte of memory here."""
ANSWERS_WITHIN_S, LONGEST_S = 1.0, 8.0
"""How long the first question after the consumer waits for its answer: nobody answers while a cluster elects a leader. Each
further one waits for twice as long, for the sake of slow lines."""
LOOK_EVERY_S = 0.25
"""How soon a reconnection is noticed: a restarted server has forgotten the request, and perhaps the consumer. nats-py tells it only
to whom it was named when it connected."""


class Pull:
    """The messages of a durable or ephemeral pull consumer, in batches of at most `batch`.

    `async with Pull(...) as pull: messages = await pull.next()`

    `group` is the priority group of a consumer that is pinned: of all its clients one gets every message, until it leaves or
    falls silent. `repeats` is whether the consumer sends again what is not acknowledged: where it does not, what was lost on the
    way is noticed, at the latest when the client has reconnected. `patience_s` is how long a batch may wait to be full while the
    server says that more is waiting there: what is alone comes at once all the same.
    """

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        stream: str,
        consumer: str,
        *,
        batch: int,
        group: str | None = None,
        repeats: bool = True,
        patience_s: float = 0,
    ) -> None:
        self._client, self._js, self._group, self._patience_s = client, js, group, patience_s
        self._repeats, self._taken = repeats, 0
        """How many were taken of a consumer that repeats nothing: the number of the last one at that consumer."""
        self._answers_within_s = ANSWERS_WITHIN_S
        self._expires_s = PINNED_EXPIRES_S if group else EXPIRES_S
        self._pin: str | None = None
        self._stream, self._consumer, self._batch = stream, consumer, batch
        self._messages: list[Msg] = []
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
            await self._unpin()

    async def next(self) -> list[Msg]:
        """Wait for messages and return all that have arrived; meanwhile the next ones are on their way.

        Raises: ConsumerGone when the consumer or its stream was deleted, MessagesLost. While the server is away it waits.
        """
        has_waited = False
        while True:
            if self._doubt:
                await self._check()
            is_full = self._owed <= 0
            if is_full:
                await self._request()
                await asyncio.sleep(0)  # it goes out before the caller sets to work
            if self._messages and (is_full or has_waited or not self._more_follow()):
                taken, self._messages = self._messages, []
                self._count(taken)
                return taken
            self._wake.clear()
            if not await happens(self._wake, self._patience_s if self._messages else LOOK_EVERY_S):
                has_waited = bool(self._messages)
                self._doubt = self._client.stats["reconnects"] > self._reconnects or self._is_silent()

    def _count(self, taken: list[Msg]) -> None:
        if self._repeats:
            return
        self._taken += len(taken)
        if taken[-1].metadata.sequence.consumer != self._taken:
            raise self._lost()

    def _lost(self) -> MessagesLost:
        return MessagesLost(f"messages of consumer {self._consumer} of stream {self._stream} were lost on their way")

    def _more_follow(self) -> bool:
        return self._patience_s > 0 and self._messages[-1].metadata.num_pending > 0

    async def _request(self) -> None:
        want: dict[str, object] = {
            "batch": self._batch,
            "max_bytes": MOST_BYTES,
            "expires": int(self._expires_s * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
        if self._group:
            want |= {"group": self._group, **({"id": self._pin} if self._pin else {})}
        self._owed, self._heard_at, self._reconnects = self._batch, time.monotonic(), self._client.stats["reconnects"]
        await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}", json.dumps(want).encode(), self._inbox)

    async def _unpin(self) -> None:
        """Let another client have the messages at once."""
        if self._pin is None:
            return
        try:
            wanted = json.dumps({"group": self._group}).encode()
            await self._client.request(f"$JS.API.CONSUMER.UNPIN.{self._stream}.{self._consumer}", wanted, timeout=2)
        except NATS_AWAY:
            return  # then after some silence

    def _is_silent(self) -> bool:
        return time.monotonic() - self._heard_at > HEARTBEATS_MISSED * HEARTBEAT_S

    async def _check(self) -> None:
        try:
            info = await self._js.consumer_info(self._stream, self._consumer, timeout=self._answers_within_s)
        except NotFoundError:
            raise ConsumerGone(f"consumer {self._consumer} of stream {self._stream} is gone") from None
        except NATS_AWAY as error:
            if isinstance(error, TimeoutError):
                self._answers_within_s = min(2 * self._answers_within_s, LONGEST_S)
            await asyncio.sleep(0.25)  # still away: the doubt remains
            return
        self._doubt, self._answers_within_s = False, ANSWERS_WITHIN_S
        self._owed = 0
        if self._repeats or not info.delivered or self._taken + len(self._messages) >= info.delivered.consumer_seq:
            return
        await asyncio.sleep(0.25)  # the last of them may be about to arrive
        if self._taken + len(self._messages) < info.delivered.consumer_seq:
            raise self._lost()

    async def _receive(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        headers = message.headers or {}
        status = headers.get("Status") if not message.data else None
        if status is None:
            self._owed -= 1
            if self._group:
                self._pin = headers.get("Nats-Pin-Id", self._pin)
            self._messages.append(message)
            if self._owed > 0 and len(self._messages) > 1 and self._more_follow():
                return
        elif status == "100":
            return
        else:
            # 404, 408 and the end of the bytes asked for are ordinary; 503 and any other 409 may mean that the consumer is gone
            self._owed = 0
            if status == "423":  # another client has them now
                self._pin = None
            self._doubt = self._doubt or not (status in {"404", "408", "423"} or headers.get("Description") == _ENOUGH)
        self._wake.set()


_ENOUGH = "Message Size Exceeds MaxBytes"
