"""Publish to a stream so that the message is there once, whatever happens on the way."""

import asyncio
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.errors import ConnectionClosedError, MaxPayloadError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from shared.connect import NATS_AWAY

log = logging.getLogger(__name__)

ALREADY_THERE = (10077, "maximum messages per subject exceeded")
"""What the server says to a second message on a subject that may hold one.

The code alone does not tell: a stream that is full says the same one, with other words, and the message is then nowhere.
"""


_ANSWERS_WITHIN_S, _LONGEST_S = 1.5, 30.0
"""How long the first try waits for its answer, which a server that dies takes with it; each further one waits for twice as
long, since a large message takes its time on a slow line."""
_LONGEST_WAIT_S = 1.0
"""How long after a refusal it is tried again at most: the leader of a stream may have been elected just after the last try."""

_IN_PROCESS = 10158
"""What a cluster says to a second message of an id while it is still storing the first: two replicas published it at once."""

TOGETHER = 1_000
"""So many messages are written to the server's disk at once, which takes as long as for one of them: the server allows no more."""
BY_THEMSELVES = 8
"""So few messages are sooner on the disk one by one: the server keeps a batch on it, too, in a directory of its own, and writes
six files for that (nats-server 2.15.1)."""
_TOGETHER_AGAIN = 100
"""Of a batch that is refused so many are tried together: where one message is there already, this many at most go by themselves."""


@dataclass(frozen=True)
class Message:
    """What is to be published: `id` is the same whenever it is the same message."""

    subject: str
    payload: bytes
    id: str
    headers: dict[str, str] = field(default_factory=dict)


async def publish_together(
    client: Client, js: JetStreamContext, stream: str, messages: Sequence[Message], batch: "Batch | None" = None
) -> list[bool]:
    """Publish messages, at most `TOGETHER` of them, for as long as it takes; return which of them are new.

    More than a few go in one atomic batch (NATS ADR-50), which the server writes to disk once instead of once for each. It
    refuses the whole batch when one of them is there already, as when another replica was faster: then they go in smaller
    batches, and each of one that is refused as well by itself. `batch` is one of these messages that is open already.
    Raises: as `publish_until_stored`.
    """
    if len(messages) > BY_THEMSELVES:
        batch = batch or await Batch.opened(client, stream, messages)
        if await batch.commit():
            return [True] * len(messages)
    if len(messages) > _TOGETHER_AGAIN:
        parts = (messages[start : start + _TOGETHER_AGAIN] for start in range(0, len(messages), _TOGETHER_AGAIN))
        found = await asyncio.gather(*(publish_together(client, js, stream, part) for part in parts))
        return [is_new for part in found for is_new in part]
    each = (publish_until_stored(js, stream, one.subject, one.payload, one.id, one.headers) for one in messages)
    return list(await asyncio.gather(*each))


class Batch:
    """Messages that a server was handed and stores when told so: all or none, and meanwhile nobody sees them.

    One that is never committed hinders nobody: the server forgets it after ten seconds.
    """

    def __init__(self, client: Client, stream: str, messages: Sequence[Message]) -> None:
        self._client, self._stream, self._messages = client, stream, messages
        self.id = secrets.token_hex(16)
        self._is_open = False

    @classmethod
    async def opened(cls, client: Client, stream: str, messages: Sequence[Message]) -> "Batch":
        """Hand all messages but the last to the server."""
        batch = cls(client, stream, messages)
        try:
            for number, message in enumerate(messages[:-1], 1):
                await client.publish(message.subject, message.payload, headers=batch._headers(number))
        except NATS_AWAY as error:
            batch._told(error)
        else:
            batch._is_open = True
        return batch

    async def commit(self) -> bool:
        """Have everything stored, and return whether it is known that all are there."""
        if not self._is_open:
            return False
        number, message = len(self._messages), self._messages[-1]
        # a batch is of one stream, so the last one tells it for all: whoever reads a message pays for each of its headers
        headers = self._headers(number) | {"Nats-Batch-Commit": "1", "Nats-Expected-Stream": self._stream}
        try:
            answer = await self._client.request(message.subject, message.payload, timeout=_ANSWERS_WITHIN_S, headers=headers)
        except NATS_AWAY as error:
            self._told(error)
            return False
        told = json.loads(answer.data)
        return "error" not in told and told.get("count") == number

    def _headers(self, number: int) -> dict[str, str]:
        message = self._messages[number - 1]
        return {**message.headers, "Nats-Msg-Id": message.id, "Nats-Batch-Id": self.id, "Nats-Batch-Sequence": str(number)}

    def _told(self, error: Exception) -> None:
        log.info("batch not acknowledged", extra={"messages": len(self._messages), "error": str(error) or type(error).__name__})


async def publish(
    js: JetStreamContext,
    stream: str,
    subject: str,
    payload: bytes,
    message_id: str,
    headers: dict[str, str] | None = None,
    *,
    timeout: float = 5,
) -> bool:
    """Publish once and return whether the message is new; False means that it was already there.

    A timeout does not say that the message was not stored: calling again with the same id is safe.
    Raises: nats.errors.Error when the server does not answer or refuses (APIError: stream full, no permission).
    """
    try:
        named = {**(headers or {}), "Nats-Msg-Id": message_id}
        acknowledgement = await js.publish(subject, payload, timeout, stream, headers=named)
    except APIError as error:
        if (error.err_code, error.description) == ALREADY_THERE:
            return False
        raise
    return not acknowledgement.duplicate


async def publish_until_stored(
    js: JetStreamContext, stream: str, subject: str, payload: bytes, message_id: str, headers: dict[str, str] | None = None
) -> bool:
    """Publish, trying again for as long as it takes, and return whether the message is new.

    Raises: MaxPayloadError for a message over the server's limit, ConnectionClosedError when the client has given up.
    """
    wait, timeout = 0.05, _ANSWERS_WITHIN_S
    while True:
        try:
            return await publish(js, stream, subject, payload, message_id, headers, timeout=timeout)
        except (MaxPayloadError, ConnectionClosedError):
            raise  # no waiting mends these
        except NATS_AWAY as error:
            if isinstance(error, TimeoutError):
                timeout = min(timeout * 2, _LONGEST_S)
            ordinary = isinstance(error, APIError) and error.err_code == _IN_PROCESS
            level = logging.DEBUG if ordinary else logging.WARNING
            log.log(
                level, "publish not acknowledged, trying again", extra={"subject": subject, "error": str(error) or type(error).__name__}
            )
        await asyncio.sleep(wait)
        wait = min(wait * 2, _LONGEST_WAIT_S)
