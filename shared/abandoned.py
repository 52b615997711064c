"""Ticks that were delivered as often as is allowed and that no runner finished: each becomes a failed result.

The recorder sees to that, and at a leaf, where there is none, the scheduler: the advisories speak of the stream of ticks that is there.
"""

import logging
from datetime import UTC, datetime

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from prometheus_client import Counter
from pydantic import BaseModel, ValidationError

from shared import subjects
from shared.claims import said
from shared.dead import bury
from shared.errors import reasons
from shared.events import ANY, Failure, Result, Status, Tick
from shared.publish import publish_until_stored
from shared.pull import Pull

log = logging.getLogger(__name__)


class Advisory(BaseModel):
    """What the server says when it gives up on a message (NATS: `io.nats.jetstream.advisory.v1.max_deliver`)."""

    stream: str
    consumer: str
    stream_seq: int
    deliveries: int


async def watch(client: Client, js: JetStreamContext, count: Counter) -> None:
    """Publish a failed result for every abandoned tick, and count it, for ever.

    Raises: ConsumerGone when the consumer was deleted.
    """
    async with Pull(client, js, subjects.ADVISORIES, subjects.RECORDER, batch=100) as pull:
        while True:
            for message in await pull.next():
                await settle(js, message, count)


async def settle(js: JetStreamContext, message: Msg, count: Counter) -> None:
    """Turn one advisory into the failed result of the tick it speaks of."""
    try:
        advisory = Advisory.model_validate_json(message.data)
        stored = await js.get_msg(advisory.stream, advisory.stream_seq)
        tick = Tick.model_validate_json(stored.data or b"")
    except NotFoundError:
        log.warning("an abandoned tick is no longer in the stream", extra={"sequence": advisory.stream_seq})
        await message.ack()
        return
    except ValidationError as error:
        await bury(js, message, f"not an advisory about a tick: {reasons(error)}")
        return
    if tick.line == ANY:
        claim = await said(js, subjects.claim(tick.site, tick.run_id))
        if claim is None or subjects.place_of_consumer(advisory.consumer) != (tick.site, claim.line):
            # the lines that do not have it may give it up: who has it measures it, and where nobody has, the settler sees it expire
            log.info("a line gave up a run that is not its own", extra={"run_id": tick.run_id, "consumer": advisory.consumer})
            await message.ack()
            return
        tick = tick.model_copy(update={"line": claim.line})
    elif subjects.place_of_consumer(advisory.consumer) != (tick.site, tick.line):
        await message.ack()  # another line's: to this one it was none to measure
        return
    failure = Failure(
        kind="abandoned",
        message=f"it was delivered {advisory.deliveries} times and no runner of site {tick.site} finished it: look at their logs",
    )
    result = Result(
        **tick.model_dump(include={"run_id", "site", "schedule", "trigger", "engine", "due_at", "start_at", "line"}),
        status=Status.FAILED,
        finished_at=datetime.now(UTC),
        attempt=advisory.deliveries,
        failure=failure,
    )
    await publish_until_stored(js, subjects.RESULTS, subjects.result(tick.site, tick.schedule), result.to_json(), str(tick.run_id))
    count.inc()
    await message.ack()
