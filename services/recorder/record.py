"""The recorder's loop: take results from the stream, store them, and acknowledge them after the commit."""

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from services.recorder import store
from services.recorder.batch import Refused, Stored, store_each
from services.recorder.metrics import Metrics
from shared import subjects
from shared.database import POSTGRES_AWAY, lent
from shared.dead import bury
from shared.errors import Unavailable
from shared.events import Result
from shared.migrate import migrate_if_allowed
from shared.pull import Pull

log = logging.getLogger(__name__)

LANES = 2
"""So many batches are stored at once: while PostgreSQL works on one, the next is read and checked."""
GARBAGE_AFTER = 100_000
"""Python looks for garbage when there are so many objects more than before: two batches at once are fewer. At its default of 700 a
fifth of the time goes into looking through results that are in use."""
FILLS_WITHIN_S = 0.1
"""How long a backlog may take to fill a batch: a transaction costs the same for one result as for a thousand."""
BURIED_AT_ONCE = 50
LONGEST_WAIT_S = 1.0
"""Between two looks for Postgres: so long at most it is back before the first row is."""

T = TypeVar("T")


class Recorder:
    """Stores results, each once."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", metrics: Metrics, batch: int) -> None:
        self._pool, self._metrics, self._batch = pool, metrics, batch
        self._turn = asyncio.Lock()
        self.is_migrated = asyncio.Event()
        """Set once the schema is up to date."""

    async def run(self, client: Client, js: JetStreamContext) -> None:
        """Bring the schema up to date, then record for ever.

        Raises: ConsumerGone when the consumer was deleted, ConfigurationError when the schema is not this version's.
        """
        await self._until_postgres_is_there(self._migrate)
        self.is_migrated.set()
        gc.freeze()
        gc.set_threshold(GARBAGE_AFTER)
        async with Pull(client, js, subjects.RESULTS, subjects.RECORDER, batch=self._batch, patience_s=FILLS_WITHIN_S) as pull:
            lanes = [asyncio.create_task(self._record_all(js, pull)) for _ in range(LANES)]
            try:
                await asyncio.gather(*lanes)
            finally:
                for lane in lanes:
                    lane.cancel()

    async def _record_all(self, js: JetStreamContext, pull: Pull) -> None:
        while True:
            async with self._turn:
                messages = await pull.next()
            await self.record(js, messages)

    async def record(self, js: JetStreamContext, messages: list[Msg]) -> None:
        """Store the results in these messages and acknowledge them; those that can never be stored are put aside, alone."""
        self._metrics.redeliveries.inc(sum(message.metadata.num_delivered > 1 for message in messages))
        refused: list[Refused[Msg]] = []
        async for outcome in store_each(messages, lambda results: self._until_postgres_is_there(lambda: self._insert(results))):
            if isinstance(outcome, Stored):
                await self._acknowledge(outcome)
            else:
                refused.append(outcome)
        # after the good ones, which need not wait for them; several at once, for each waits for the disk of the server
        for start in range(0, len(refused), BURIED_AT_ONCE):
            await asyncio.gather(*(self._bury(js, each) for each in refused[start : start + BURIED_AT_ONCE]))

    async def _acknowledge(self, stored: Stored[Msg]) -> None:
        number, new = len(stored.messages), stored.new
        self._metrics.batch.observe(number)
        self._metrics.results.labels("stored").inc(new)
        self._metrics.results.labels("duplicate").inc(number - new)
        for message, _ in stored.messages:
            await message.ack()
        if number == 1:
            result = stored.messages[0][1]
            log.info("result stored", extra={"run_id": result.run_id, "status": result.status, "new": bool(new)})
        else:
            log.info("results stored", extra={"results": number, "new": new})

    async def _insert(self, results: Sequence[Result]) -> int:
        started = time.monotonic()
        async with lent(self._pool) as connection:
            new = await store.record(connection, results)
        self._metrics.commit.observe(time.monotonic() - started)
        return new

    async def _migrate(self) -> None:
        async with lent(self._pool) as connection:
            await migrate_if_allowed(connection)

    async def _until_postgres_is_there(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do some work with Postgres, waiting and trying again while it is away or not ready, its schema included.

        Raises: one of store.REFUSED, which no waiting mends.
        """
        wait = 0.1
        while True:
            try:
                done = await work()
            except store.REFUSED:
                raise
            except (Unavailable, *POSTGRES_AWAY, asyncpg.PostgresError) as error:
                self._metrics.waiting.set(1)
                log.warning("waiting for postgres", extra={"error": str(error) or type(error).__name__, "again_in_s": wait})
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT_S)
                continue
            self._metrics.waiting.set(0)
            return done

    async def _bury(self, js: JetStreamContext, refused: Refused[Msg]) -> None:
        self._metrics.results.labels("dead").inc()
        await bury(js, refused.message, refused.reason)
