"""Fill a table, ask both, check that they answer the same, measure them in turns, write the table."""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import httpx
import psutil

from bench.machine import describe
from bench.reads import report, servers
from bench.reads.load import Taken, round_of
from bench.reads.table import BEGIN, END, SITES, fill

CONNECTIONS = (1, 16, 64)


@dataclass(frozen=True)
class Read:
    """Something that is asked for."""

    name: str
    path: str
    """Of the API."""
    peer: str | None
    """Of Django, where it is measured too."""
    bar_ms: float | None


def reads(url: str) -> list[Read]:
    """Return what is asked for: the deep page begins where a year has ten months left to come."""
    deep = {"site": "site-7", "status": "succeeded"}
    at = BEGIN + timedelta(days=60)
    last = httpx.get(f"{url}/api/v1/results", params={**deep, "to": _text(at), "limit": 1}, trust_env=False).raise_for_status().json()
    position = {"before": last["items"][0]["due_at"], "run_id": last["items"][0]["run_id"]}
    month = {"from": "2025-11-01T00:00:00Z", "to": "2025-12-01T00:00:00Z"}
    year = {"from": _text(BEGIN), "to": _text(END)}
    one = {"schedule": "schedule-7"}

    def summary(name: str, query: dict[str, str], bar_ms: float | None, *, peer: bool = False) -> Read:
        return Read(name, f"/api/v1/summary?{urlencode(query)}", f"/summary?{urlencode(query)}" if peer else None, bar_ms)

    return [
        Read("latest 100", "/api/v1/results?limit=100", "/results?limit=100", 3),
        Read(
            "a page of 100 of a site, ten months back",
            f"/api/v1/results?{urlencode({**deep, 'limit': 100, 'cursor': last['next']})}",
            f"/results?{urlencode({**deep, 'limit': 100, **position})}",
            3,
        ),
        summary("30 days by hour, one schedule", {"bucket": "hour", **month, **one}, 10, peer=True),
        summary("30 days by hour, all 50", {"bucket": "hour", **month}, 80),
        summary("30 days in one, one schedule (p95)", {"bucket": "none", **month, **one}, None),
        summary("a year by day, one schedule", {"bucket": "day", **year, **one}, 50),
    ]


def same(url: str, port: int, read: Read) -> None:
    """Insist on the same answer from both.

    Raises: ValueError when they differ.
    """
    ours = httpx.get(f"{url}{read.path}", trust_env=False, timeout=120).raise_for_status().json()
    theirs = httpx.get(f"http://127.0.0.1:{port}{read.peer}", trust_env=False, timeout=120).raise_for_status().json()
    for key in theirs:
        if _rounded(ours[key]) != _rounded(theirs[key]):
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
                for side, where, path in (("refresher", api, read.path), ("django", port, read.peer)):
                    if path:
                        took = asyncio.run(round_of(where, path, connections, for_s))
                        taken.setdefault((read.name, side, connections), []).append(took)
    return taken


async def _size(url: str) -> tuple[int, int, str]:
    connection = await asyncpg.connect(url)
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM results), sum(pg_total_relation_size(oid))::bigint, current_setting('server_version')"
        " FROM pg_class WHERE relname ~ '^results_2025' AND relkind = 'r'"
    )
    await connection.close()
    assert row
    return row[0], row[1], row[2]


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _rounded(value: Any) -> Any:
    """Return JSON with numbers of 9 digits: the last ones of a mean depend on the order of its rows."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return f"{value:.9g}" if isinstance(value, int | float) else json.dumps(value)


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
    machine = f"{describe()}, PostgreSQL {postgres}, Django {servers.version('django')}, gunicorn {servers.version('gunicorn')}"
    bars = {read.name: read.bar_ms for read in every}
    text = report.text(report.Whole(machine, rows, size, wanted.rounds, bars, taken, exported))
    print(text)
    if wanted.page:
        report.write(wanted.page, text)


if __name__ == "__main__":
    main()
