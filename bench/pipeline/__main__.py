"""Measure every side in turn, round after round, and write the table: `make bench-pipeline`.

A round publishes a backlog and waits until the last row is committed; the sides take turns within it. Then each is given ten
tasks a second, one at a time, and every row says when it was committed (a trigger's NOTIFY, delivered at the commit).
"""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import psutil

from bench.machine import describe, versions
from bench.page import table, write
from bench.pipeline.redis import Redis
from bench.pipeline.report import HEADINGS, rows, verdicts
from bench.pipeline.sides import Side, celery, dramatiq, refresher
from bench.pipeline.usage import cpu_s, memory_bytes
from tests.servers import Postgres

A_SECOND = 10
LOOK_EVERY_S = 0.02
LONGEST_S = 60
_TELL = """
CREATE FUNCTION bench_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('bench', extract(epoch FROM NEW.due_at)::text); RETURN NULL; END $$
"""
_TRIGGER = "CREATE TRIGGER bench_tell AFTER INSERT ON results FOR EACH ROW EXECUTE FUNCTION bench_tell()"


@dataclass
class Measured:
    """What a side did, a figure a round: rows a second, CPU seconds per 1,000 rows by part, bytes, latencies in ms."""

    rates: list[float] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


class Bench:
    """The sides, their database, and what was measured so far."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", server: psutil.Process) -> None:
        self._connection, self._server = connection, server
        self.measured: dict[str, Measured] = {}

    async def backlog(self, side: Side, number: int, name: str, *, counts: bool) -> None:
        """Have a side store so many rows as fast as it can; the first time does not count."""
        await self._connection.execute("TRUNCATE results")
        parts = {**side.parts, "PostgreSQL": [self._server]}
        before, started = cpu_s(parts), time.perf_counter()
        side.publish(number, 0, name)
        while await self._connection.fetchval("SELECT count(*) FROM results") < number:
            if time.perf_counter() - started > LONGEST_S:
                raise TimeoutError(f"{side.name} has not stored {number} rows within {LONGEST_S} s")
            await asyncio.sleep(LOOK_EVERY_S)
        took = time.perf_counter() - started
        await asyncio.to_thread(side.published)
        if counts:
            used = {part: (now - before[part]) * 1_000 / number for part, now in cpu_s(parts).items()}
            measured = self.measured.setdefault(side.name, Measured())
            measured.rates.append(number / took)
            measured.cpu.append(used)
            measured.memory.append(memory_bytes(side.parts))

    async def trickle(self, side: Side, number: int, name: str) -> None:
        """Give a side ten tasks a second and see how long each takes to be a row.

        The first of a round does not count: its side has rested while the others had their turns, and closed connections that it
        did not need. What is in the table stays: emptied, statements would be planned anew.
        """
        taken: list[float] = []
        told = lambda *each: taken.append((time.time() - float(each[3])) * 1e3)  # noqa: E731
        await self._connection.add_listener("bench", told)
        side.publish(1 + number, A_SECOND, name)
        await asyncio.to_thread(side.published)
        async with asyncio.timeout(LONGEST_S):
            while len(taken) < 1 + number:
                await asyncio.sleep(LOOK_EVERY_S)
        await self._connection.remove_listener("bench", told)
        self.measured[side.name].latencies += taken[1:]


def start_sides(directory: Path, database_url: str, stack: ExitStack) -> list[Side]:
    """Start every side: Refresher first, whose recorder makes the table."""
    ours = refresher("Refresher", directory / "ours", database_url, stack, sync_always=False)
    always = refresher("Refresher, `sync_interval: always`", directory / "always", database_url, stack, sync_always=True)
    late, logged = "Celery, `acks_late`", "Celery, `acks_late`, AOF"
    return [
        ours,
        celery("Celery", Redis(directory / "redis-1", on_disk=False), database_url, directory, stack, acks_late=False),
        celery(late, Redis(directory / "redis-2", on_disk=False), database_url, directory, stack, acks_late=True),
        always,
        celery(logged, Redis(directory / "redis-3", on_disk=True), database_url, directory, stack, acks_late=True),
        dramatiq("Dramatiq", Redis(directory / "redis-4", on_disk=False), database_url, directory, stack),
    ]


async def measure(directory: Path, number: int, rounds: int, seconds: int) -> dict[str, Measured]:
    """Start everything, measure it, and end it."""
    with ExitStack() as stack:
        server = Postgres(directory, {"max_connections": "60"})
        stack.callback(server.stop)
        sides = start_sides(directory, server.url, stack)
        connection = await asyncpg.connect(server.url)
        bench = Bench(connection, psutil.Process(server.process.pid))
        for turn in range(rounds + 1):  # the first one warms up
            for side in sides:
                await bench.backlog(side, number if turn else min(number, 300), f"b{turn}", counts=turn > 0)
                if turn:
                    print(f"{side.name}: {bench.measured[side.name].rates[-1]:,.0f} rows/s", flush=True)
        await connection.execute(_TELL)
        await connection.execute(_TRIGGER)
        for turn in range(rounds):
            for side in sides:
                await bench.trickle(side, max(1, seconds * A_SECOND // rounds), f"t{turn}")
        await connection.close()
        return bench.measured


def main() -> None:
    """Measure, print, and write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000, help="a round and side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60, help="of ten tasks a second, a side")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refresher-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        measured = asyncio.run(measure(Path(name), asked.rows, asked.rounds, asked.seconds))
    how = f"{asked.rounds} rounds of {asked.rows:,} rows, the sides in turn; medians (lowest to highest)"
    peers = versions("celery", "django", "dramatiq", "psycopg")
    lines = [f"Measured on {describe()}; {peers}. {how}.", "", *table(HEADINGS, rows(measured)), "", *verdicts(measured)]
    print("\n".join(lines))
    if asked.page:
        write(asked.page, "pipeline", lines)


if __name__ == "__main__":
    sys.exit(main())
