"""Follow the bucket of schedules: what is in it now, then every change as it happens."""

import asyncio
import gc
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from shared import subjects
from shared.buckets import is_removal
from shared.connect import NATS_AWAY
from shared.errors import ConsumerGone, MessagesLost
from shared.pull import Pull
from shared.schedules import Schedule, read

log = logging.getLogger(__name__)

_STREAM = f"KV_{subjects.SCHEDULES}"
_PREFIX = f"$KV.{subjects.SCHEDULES}."


@dataclass(frozen=True)
class Change:
    """What became of one schedule: a new value, or None when it was removed; `invalid` when the value is no schedule."""

    name: str
    schedule: Schedule | None
    invalid: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Everything that is in the bucket: what is not named here is gone."""

    changes: tuple[Change, ...]
    asked_at: float = field(default_factory=time.monotonic)
    """When the bucket was asked for it, on the monotonic clock."""


async def follow(client: Client, js: JetStreamContext) -> AsyncIterator[Snapshot | Change]:
    """Yield a snapshot, then changes; a snapshot again after the server lost the consumer (a restart), or a line was cut.

    Raises: ConsumerGone when the bucket itself was deleted: whoever starts anew makes it again.

    nats-py's own watcher is not used: it stays silent for ever once the server has forgotten its consumer.
    """
    while True:
        asked_at = time.monotonic()
        try:
            consumer = await js.add_consumer(_STREAM, _consumer())
            async with Pull(client, js, _STREAM, consumer.name, batch=1_000, repeats=False) as pull:
                with _nothing_collected():
                    yield Snapshot(await _everything(pull, consumer.num_pending or 0), asked_at)
                while True:
                    for message in await pull.next():
                        yield _change(message)
        except (ConsumerGone, MessagesLost) as error:
            log.info("reading the schedules anew", extra={"reason": str(error)})
        except NotFoundError:
            raise ConsumerGone(f"the bucket {subjects.SCHEDULES} is gone") from None
        except NATS_AWAY as error:
            log.warning("the schedules cannot be read, trying again", extra={"error": str(error) or type(error).__name__})
            await asyncio.sleep(0.5)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Look for no garbage meanwhile: what is read and planned stays, and to look through all of it time and again takes half as long."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _everything(pull: Pull, left: int) -> tuple[Change, ...]:
    found: list[Change] = []
    while left > 0:
        messages = await pull.next()
        found += [_change(message) for message in messages]
        left = messages[-1].metadata.num_pending
    return tuple(found)


def _consumer() -> ConsumerConfig:
    return ConsumerConfig(
        name=f"{subjects.SCHEDULER}{secrets.token_hex(8)}",
        filter_subject=f"{_PREFIX}>",
        deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=60,
        mem_storage=True,
    )


def _change(message: Msg) -> Change:
    name = message.subject.removeprefix(_PREFIX)
    if is_removal(message.headers):
        return Change(name, None)
    try:
        return Change(name, read(name, message.data))
    except ValueError as error:
        log.warning("schedule is invalid and not run", extra={"schedule": name, "reasons": str(error)})
        return Change(name, None, invalid=True)
