"""The recorder's loop: take results from the stream, store them, and acknowledge them after the commit."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import asyncpg
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from pydantic import ValidationError

from services.recorder import store
from services.recorder.metrics import Metrics
from shared import subjects
from shared.connect import POSTGRES_AWAY, Connection
from shared.dead import bury
from shared.errors import Unavailable, reasons
from shared.events import Result, run_id_of
from shared.migrate import migrate_if_allowed
from shared.pull import Pull

log = logging.getLogger(__name__)

OLDEST = datetime(2000, 1, 1, tzinfo=UTC)
NEWEST = timedelta(days=1)
"""A due instant outside of these is a broken clock, not a result; a month that nobody lives in gets no partition."""

LONGEST_WAIT_S = 5.0

Parsed = tuple[Msg, Result]
T = TypeVar("T")


class Recorder:
    """Stores results, each once."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", metrics: Metrics, batch: int) -> None:
        self._pool, self._metrics, self._batch = pool, metrics, batch

    async def run(self, client: Client, js: JetStreamContext) -> None:
        """Bring the schema up to date, then record for ever.

        Raises: ConsumerGone when the consumer was deleted, ConfigurationError when the schema is not this version's.
        """
        await self._until_postgres_is_there(self._migrate)
        async with Pull(client, js, subjects.RESULTS, subjects.RECORDER, batch=self._batch) as pull:
            while True:
                await self.record(js, await pull.next())

    async def record(self, js: JetStreamContext, messages: list[Msg]) -> None:
        """Store the results in these messages and acknowledge them; those that can never be stored are put aside, alone."""
        parsed: list[Parsed] = []
        for message in messages:
            self._metrics.redeliveries.inc((message.metadata.num_delivered or 1) > 1)
            try:
                parsed.append((message, _parse(message)))
            except ValueError as error:
                await self._bury(js, message, _reason(error))
        if parsed:
            await self._store(js, parsed)

    async def _store(self, js: JetStreamContext, parsed: list[Parsed]) -> None:
        """Store what can be stored: where a batch is refused, its halves are tried, down to the one that is at fault."""
        results = [result for _, result in parsed]
        try:
            new = await self._until_postgres_is_there(lambda: self._insert(results))
        except store.REFUSED as error:
            if len(parsed) == 1:
                return await self._bury(js, parsed[0][0], _reason(error))
            middle = len(parsed) // 2
            await self._store(js, parsed[:middle])
            return await self._store(js, parsed[middle:])
        self._metrics.batch.observe(len(parsed))
        self._metrics.results.labels("stored").inc(new)
        self._metrics.results.labels("duplicate").inc(len(parsed) - new)
        for message, _ in parsed:
            await message.ack()
        if len(parsed) == 1:
            log.info("result stored", extra={"run_id": results[0].run_id, "status": results[0].status, "new": bool(new)})
        else:
            log.info("results stored", extra={"results": len(parsed), "new": new})
        return None

    async def _insert(self, results: list[Result]) -> int:
        started = time.monotonic()
        async with self._connection() as connection:
            await store.add_partitions(connection, {store.month_of(result) for result in results})
            new = await store.insert(connection, results)
        self._metrics.commit.observe(time.monotonic() - started)
        return new

    async def _migrate(self) -> None:
        async with self._connection() as connection:
            await migrate_if_allowed(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            connection = await self._pool.acquire()
        except ValueError as error:  # a certificate that ran out is one: the server's fault, not that of what is to be stored
            raise ConnectionError(str(error)) from error
        try:
            yield connection
        finally:
            await self._pool.release(connection)

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

    async def _bury(self, js: JetStreamContext, message: Msg, reason: str) -> None:
        self._metrics.results.labels("dead").inc()
        await bury(js, message, reason)


def _parse(message: Msg) -> Result:
    """Return the result in a message.

    The server lets a runner publish on the subjects of its site alone, so what the result says of itself is held against
    the subject: no runner can speak for another site, or take the place of a run there.
    Raises: ValueError when it is no result, is not of that site, or its due instant is absurd.
    """
    result = Result.model_validate_json(message.data)
    if not subjects.is_result_of(result.site, message.subject):
        raise ValueError(f"it is of site {result.site} and came on {message.subject}")
    if not _is_its_own(result):
        raise ValueError(f"{result.run_id} is not the id of that run")
    if not OLDEST <= result.due_at <= message.metadata.timestamp + NEWEST:  # the server's clock: this machine's may be wrong
        raise ValueError(f"due_at {result.due_at.isoformat()} is before 2000 or after it was published")
    return result


def _is_its_own(result: Result) -> bool:
    """Return whether the id belongs to this run: it follows from schedule, site and instant, or is random (UUID version 4)."""
    if result.trigger == "manual" or result.schedule is None:
        return result.run_id.version == 4
    return result.run_id == run_id_of(result.schedule, result.site, result.due_at)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"not a result: {reasons(error)}"
    return f"cannot be stored: {type(error).__name__}: {error}"
