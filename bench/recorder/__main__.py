"""The recorder draining a backlog, beside what asyncpg can insert and what nats-py can fetch: `make bench-recorder`.

All sides take the same results, in turns: the recorder from the stream into a database of its own, asyncpg on one connection from
rows that are ready in memory into another one with the same table, nats-py's own `fetch` from the stream to nowhere.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import nats
import psutil
from nats.aio.client import Client
from nats.js import JetStreamContext

from bench.page import write
from bench.pipeline.usage import cpu_s
from bench.recorder import backlog
from bench.recorder.report import COPY, FETCH, RECORDER, TWO, UNNEST, Drained, report
from services.recorder import store
from shared import subjects
from shared.database import Connection
from shared.events import Result
from shared.migrate import migrate
from tests.servers import Nats, Postgres
from tests.services import ServiceProcess

BATCH = 1_000
LOOK_EVERY_S = 0.2
# The ceiling is the table and its indexes, nothing else; besides, COPY writes row by row where a trigger wants to see the new ones.
_NO_TRIGGERS = """
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'results'::regclass AND NOT tgisinternal LOOP
    EXECUTE format('DROP TRIGGER %I ON results', name);
  END LOOP;
END $$
"""


@dataclass
class Bench:
    """The servers, and what was measured so far."""

    directory: Path
    broker: Nats
    client: Client
    js: JetStreamContext
    postgres: psutil.Process
    database_url: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    drained: list[Drained] = field(default_factory=list)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """Give the URL of a database with empty tables, deleted afterwards."""
        main = await asyncpg.connect(self.database_url)
        await main.execute("CREATE DATABASE bench TEMPLATE bench_template")
        await main.execute("CHECKPOINT")
        yield self.database_url.replace("/postgres?", "/bench?")
        await main.execute("DROP DATABASE bench WITH (FORCE)")
        await main.close()

    async def drain(self, number: int, recorders: int = 1) -> Drained:
        """Have recorders store what is on the stream."""
        async with self.database() as url:
            async with backlog.held_back(self.js):
                quiet = {"REFRESHER_LOG_LEVEL": "warning", "REFRESHER_RECORDER_BATCH": str(BATCH)}
                services = [ServiceProcess("recorder", self.directory, self.broker.url, url, **quiet) for _ in range(recorders)]
                for service in services:
                    await asyncio.to_thread(service.wait_until_ready, 60)
                connection = await asyncpg.connect(url)
                wal = await connection.fetchval("SELECT pg_current_wal_lsn()")
                processes = [psutil.Process(service.process.pid) for service in services]
                parts = {"recorder": processes, "NATS": [psutil.Process(self.broker.process.pid)], "PostgreSQL": [self.postgres]}
                before, memory = cpu_s(parts), [processes[0].memory_info().rss]
                started = time.perf_counter()
            while not await backlog.is_done(self.js):
                await asyncio.sleep(LOOK_EVERY_S)
                memory.append(processes[0].memory_info().rss)
            ended = await connection.fetchval("SELECT max(recorded_at) FROM results")
            took = time.perf_counter() - started - (time.time() - ended.timestamp())
            used = {part: (now - before[part]) * 1_000 / number for part, now in cpu_s(parts).items()}
            assert await connection.fetchval("SELECT count(*) FROM results") == number
            written = await connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", wal)
            disk = await connection.fetchval("SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('results')")
            await connection.close()
            for service in services:
                service.stop()
            return Drained(number / took, used, memory, float(written) / number, float(disk) / number)

    async def insert(self, number: int, work: Callable[[Connection, list[Result]], Awaitable[float]]) -> float:
        """Return how many results a second `work` stores, which returns the seconds that a batch took it."""
        async with self.database() as url:
            connection = await asyncpg.connect(url)
            await connection.execute(_NO_TRIGGERS)
            await connection.execute("SELECT results_partition($1)", backlog.BEGIN)
            batches = [list(map(backlog.result, range(at, min(at + BATCH, number)))) for at in range(0, number, BATCH)]
            took = [await work(connection, batch) for batch in batches]
            await connection.close()
        return number / sum(took)

    async def fetch(self, number: int) -> float:
        """Return how many messages a second nats-py fetches and acknowledges."""
        subscription = await self.js.pull_subscribe(subjects.ALL_RESULTS, stream=subjects.RESULTS, config=backlog.fetching())
        started, taken = time.perf_counter(), 0
        while taken < number:
            messages = await subscription.fetch(BATCH, timeout=10)
            for message in messages:
                await message.ack()
            taken += len(messages)
        await self.client.flush()
        took = time.perf_counter() - started
        await subscription.unsubscribe()
        return number / took

    async def round(self, number: int) -> None:
        """Have every side take the same results."""
        drained = await self.drain(number)
        self.drained.append(drained)
        measured = {
            RECORDER: drained.rate,
            TWO: (await self.drain(number, 2)).rate,
            COPY: await self.insert(number, _copy),
            UNNEST: await self.insert(number, _unnest),
            FETCH: await self.fetch(number),
        }
        for side, rate in measured.items():
            self.rates.setdefault(side, []).append(rate)
        print(", ".join(f"{side} {rate:,.0f}" for side, rate in measured.items()), flush=True)


async def _copy(connection: Connection, results: list[Result]) -> float:
    rows = list(map(store.row, results))
    started = time.perf_counter()
    await connection.copy_records_to_table("results", records=rows, columns=store.COLUMNS)
    return time.perf_counter() - started


async def _unnest(connection: Connection, results: list[Result]) -> float:
    columns = store.columns(results)
    started = time.perf_counter()
    await connection.execute(store.INSERT, *columns)
    return time.perf_counter() - started


async def measure(directory: Path, number: int, rounds: int, large: int) -> tuple[Bench, Drained]:
    """Start the servers, let every side take its turns, and have the recorder drain a large backlog at the end."""
    with ExitStack() as stack:
        broker = Nats(directory / "nats")
        stack.callback(broker.stop)
        server = Postgres(directory, {})
        stack.callback(server.stop)
        await _template(server.url)
        client = await nats.connect(broker.url)
        js = client.jetstream(timeout=30)
        await backlog.prepare(js)
        bench = Bench(directory, broker, client, js, psutil.Process(server.process.pid), server.url)
        await backlog.publish(client, js, 0, number)
        await bench.drain(number)  # warms up
        for _ in range(rounds):
            await bench.round(number)
        await backlog.publish(client, js, number, large)
        drained = await bench.drain(max(number, large))
        await client.close()
        return bench, drained


async def _template(url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                connection = await asyncpg.connect(url)
                break
            except asyncpg.CannotConnectNowError:  # it listens before it is ready
                await asyncio.sleep(LOOK_EVERY_S)
    await connection.execute("CREATE DATABASE bench_template")
    inside = await asyncpg.connect(url.replace("/postgres?", "/bench_template?"))
    await migrate(inside)
    await inside.close()
    await connection.close()


def main() -> None:
    """Measure, print, and write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="a round and side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backlog", type=int, default=1_000_000, help="drained once at the end")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refresher-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        (Path(name) / "nats").mkdir()
        bench, drained = asyncio.run(measure(Path(name), asked.rows, asked.rounds, asked.backlog))
    lines = report(bench.rates, bench.drained, asked.rows, drained, asked.backlog)
    print("\n".join(lines))
    if asked.page:
        write(asked.page, "recorder", lines)


if __name__ == "__main__":
    sys.exit(main())
