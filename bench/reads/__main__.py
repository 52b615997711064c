"""Fill a table, ask both, check that they answer the same, measure them in turns, write the table."""

import argparse
import asyncio
import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import httpx
import psutil

from bench.machine import describe, versions
from bench.reads import report, servers
from bench.reads.load import Taken, round_of
from bench.reads.table import BEGIN, END, SITES, fill

CONNECTIONS = (1, 16, 64)
OFF = {"p50": 0.0101, "p95": 0.0101}
"""How far these may be apart: the API may have them from histograms."""
HOURS = 8_000
"""So many periods of 30 days of the year begin at an hour of their own."""


@dataclass(frozen=True)
class Read:
    """Something that is asked for."""

    name: str
    path: str
    """Of the API. What it says in braces is another with each request, so that none is answered from memory: see `nth`."""
    peer: str | None
    """Of Django, where it is measured too."""
    bar_ms: float | None
    kept: str | None = None
    """Of the API, always the same, where its answer from memory is measured too."""

    def nth(self, path: str, number: int) -> str:
        """Return what the nth request asks for: {after} is a moment after the last row, {from} and {to} are 30 days of the year."""
        since = BEGIN + number % HOURS * timedelta(hours=1)
        month = {"from": _text(since), "to": _text(since + timedelta(days=30))}
        return path.format(after=f"{END:%Y-%m-%dT%H:%M:%S}.{1 + number % 999_999:06d}Z", **month)


def reads(url: str) -> list[Read]:
    """Return what is asked for: the deep page begins where a year has ten months left to come."""
    deep = {"site": "site-7", "status": "succeeded"}
    at = BEGIN + timedelta(days=60)
    last = httpx.get(f"{url}/api/v1/results", params={**deep, "to": _text(at), "limit": 1}, trust_env=False).raise_for_status().json()
    position = {"before": last["items"][0]["due_at"], "run_id": last["items"][0]["run_id"]}
    month = "from={from}&to={to}"
    year = f"from={_text(BEGIN)}&to="
    one = "schedule=schedule-7"

    def summary(name: str, query: str, bar_ms: float | None) -> Read:
        return Read(name, f"/api/v1/summary?{query}", None, bar_ms)

    return [
        Read("latest 100", "/api/v1/results?limit=100&to={after}", "/results?limit=100", 3, "/api/v1/results?limit=100"),
        Read(
            "a page of 100 of a site, ten months back",
            f"/api/v1/results?{urlencode({**deep, 'limit': 100, 'cursor': last['next']})}&to={{after}}",
            f"/results?{urlencode({**deep, 'limit': 100, **position})}",
            3,
        ),
        Read(
            "30 days by hour, one schedule",
            f"/api/v1/summary?bucket=hour&{month}&{one}",
            f"/summary?bucket=hour&{month}&{one}",
            10,
            f"/api/v1/summary?bucket=hour&from=2025-11-01T00:00:00Z&to=2025-12-01T00:00:00Z&{one}",
        ),
        summary("30 days by hour, all 50", f"bucket=hour&{month}", 80),
        summary("30 days in one, one schedule (p95)", f"bucket=none&{month}&{one}", None),
        summary("a year by day, one schedule", f"bucket=day&{year}{{after}}&{one}", 50),
    ]


def same(url: str, port: int, read: Read) -> None:
    """Insist on the same answer from both.

    Raises: ValueError when they differ.
    """
    ours = httpx.get(f"{url}{read.nth(read.path, 0)}", trust_env=False, timeout=120).raise_for_status().json()
    theirs = httpx.get(f"http://127.0.0.1:{port}{read.nth(str(read.peer), 0)}", trust_env=False, timeout=120).raise_for_status().json()
    for key in theirs:
        if not _same(ours[key], theirs[key]):
            raise ValueError(f"{read.name}: the two do not answer the same")


def export(url: str, process: psutil.Process, rows: int) -> report.Export:
    """Export about a million results and return how it went."""
    share = min(1.0, 1_000_000 / rows)
    query = {"format": "ndjson", "from": _text(BEGIN), "to": _text(BEGIN + (END - BEGIN) * share)}
    before, most, size, lines, first = process.memory_info().rss, 0, 0, 0, None
    began = time.perf_counter()
    with httpx.stream("GET", f"{url}/api/v1/results/export", params=query, trust_env=False, timeout=60) as answer:
        answer.raise_for_status()
        for number, piece in enumerate(answer.iter_raw()):
            first = first or time.perf_counter() - began
            size, lines = size + len(piece), lines + piece.count(b"\n")
            if number % 200 == 0:
                most = max(most, process.memory_info().rss)
    return report.Export(lines, size, first or 0.0, time.perf_counter() - began, most - before)


def measure(url: str, port: int, every: list[Read], rounds: int, for_s: float) -> dict[tuple[str, str, int], list[Taken]]:
    """Ask in turns and return what each round took, by read, side and connections. What has no peer is asked on one connection."""
    taken: dict[tuple[str, str, int], list[Taken]] = {}
    api = int(url.rsplit(":", 1)[1])
    for _ in range(rounds):
        for read in every:
            for connections in CONNECTIONS if read.peer else CONNECTIONS[:1]:
                for side, where, path in (("refresher", api, read.path), ("memory", api, read.kept), ("django", port, read.peer)):
                    if path:
                        took = asyncio.run(round_of(where, partial(read.nth, path), connections, for_s))
                        taken.setdefault((read.name, side, connections), []).append(took)
    return taken


async def _size(url: str) -> tuple[int, int, str]:
    connection = await asyncpg.connect(url)
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM results), sum(pg_total_relation_size(oid))::bigint, current_setting('server_version')"
        " FROM pg_class WHERE relname ~ '^(results_2025|result_rollups$)' AND relkind = 'r'"
    )
    await connection.close()
    assert row
    return row[0], row[1], row[2]


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _same(ours: Any, theirs: Any, off: float = 1e-9) -> bool:
    """Return whether two pieces of JSON say the same: percentiles within 1 %, other numbers but for the order of their sum."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key], OFF.get(key, off)) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(_same(one, other) for one, other in zip(ours, theirs, strict=True))
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=off)
    return bool(ours == theirs)


def main() -> None:
    """Measure, print, and write the page when one is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
    parser.add_argument("--page", type=Path)
    wanted = parser.parse_args()
    with servers.directory() as data, servers.postgres_server(data) as database:
        began = time.perf_counter()
        asyncio.run(fill(database, wanted.rows))
        rows, size, postgres = asyncio.run(_size(database))
        print(f"{rows:,} results of {SITES} sites made in {time.perf_counter() - began:.0f} s, {size / 1e9:.2f} GB", flush=True)
        with servers.refresher(database, data) as api, servers.django(database, data) as port:
            every = reads(api.url)
            for read in every:
                if read.peer:
                    same(api.url, port, read)
            measure(api.url, port, every, 1, 0.2)  # warms up
            taken = measure(api.url, port, every, wanted.rounds, wanted.seconds)
            exported = export(api.url, psutil.Process(api.process.pid), rows)
    machine = f"{describe()}, PostgreSQL {postgres}, {versions('Django', 'gunicorn')}"
    bars = {read.name: read.bar_ms for read in every}
    text = report.text(report.Whole(machine, rows, size, wanted.rounds, bars, taken, exported))
    print(text)
    if wanted.page:
        report.write(wanted.page, text)


if __name__ == "__main__":
    main()
