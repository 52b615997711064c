"""Outages, from rows in a real Postgres: through the API and on the command line."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.database import Connection
from tests.commands import Refresher
from tests.integration.api_server import api_server, in_process
from tests.integration.rows import insert, row
from tests.servers import Nats

T0 = datetime(2026, 9, 30, 23, 59, tzinfo=UTC)  # the month ends: its rows are in two partitions
TEN = timedelta(seconds=10)
PERIOD = {"from": "2026-09-25T00:00:00Z", "to": "2026-10-05T00:00:00Z"}


@pytest.fixture
async def api(nats_server: Nats, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an API on this test's database."""
    async with in_process(nats_server.url, database_url) as client:
        yield client


def at(number: int) -> str:
    """Return when a check began, as the API writes it."""
    return (T0 + number * TEN).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def look(database: Connection, ends: str, **columns: Any) -> None:
    """Insert checks ten seconds apart: `u`p, `d`own, DNS (`n`), misconfigured (`m`), skipped (`s`), or none at all (space)."""
    kinds = {"d": "line_down", "n": "dns_down", "m": "misconfigured", "s": "line_busy"}
    rows = []
    for number, end in enumerate(ends):
        if end == "u":
            what: dict[str, Any] = {"status": "succeeded", "latency_s": 0.01, "download_bps": None, "upload_bps": None}
        else:
            what = {"status": "skipped" if end == "s" else "failed", "failure_kind": kinds.get(end), "failure_message": f"check {number}"}
        if end != " ":
            rows.append(row(T0 + number * TEN, **{"engine": "connectivity", **what, **columns}))
    await insert(database, *rows)


async def found(api: httpx.AsyncClient, **parameters: Any) -> list[dict[str, Any]]:
    """Return the outages that the API lists."""
    answer = await api.get("/api/v1/outages", params={**PERIOD, **parameters})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def test_failures_in_a_row_are_one_outage(api: httpx.AsyncClient, database: Connection) -> None:
    """It starts with the first check that failed and ends with the first that succeeded; the newest comes first."""
    await look(database, "uudddduundu")
    assert await found(api) == [
        {
            "site": "home",
            "line": None,
            "schedule": "hourly",
            "started_at": at(8),
            "ended_at": at(10),
            "open": False,
            "duration_s": 20,
            "checks": 2,
            "failure": {"kind": "line_down", "message": "check 9"},
        },
        {
            "site": "home",
            "line": None,
            "schedule": "hourly",
            "started_at": at(2),
            "ended_at": at(6),
            "open": False,
            "duration_s": 40,
            "checks": 4,
            "failure": {"kind": "line_down", "message": "check 5"},
        },
    ]


@pytest.mark.parametrize(
    ("ends", "outages"),
    [
        ("uuu", []),
        ("", []),
        ("ddu", [(0, 2, 20, 2)]),
        ("udd", [(1, None, 10, 2)]),
        ("d", [(0, None, 0, 1)]),
        ("uds d mdu", [(1, 8, 70, 3)]),
        ("umu", []),
        ("dmu", [(0, 2, 20, 1)]),
    ],
)
async def test_what_an_outage_is(
    api: httpx.AsyncClient, database: Connection, ends: str, outages: list[tuple[int, int | None, float, int]]
) -> None:
    """It may begin the period and be open at its end; what was skipped, missed or misconfigured neither begins nor ends it."""
    await look(database, ends)
    told = [(each["started_at"], each["ended_at"], each["open"], each["duration_s"], each["checks"]) for each in await found(api)]
    assert told == [
        (at(start), None if end is None else at(end), end is None, duration, checks) for start, end, duration, checks in outages
    ]


async def test_lines_are_told_apart(api: httpx.AsyncClient, database: Connection) -> None:
    """What another line or site reaches ends no outage, and another engine's failure is none."""
    await look(database, "udddu")
    await look(database, "uuuuu", line="lte")
    await look(database, "uuudd", site="office")
    await look(database, "ddddd", engine="speedtest")
    told = [(each["site"], each["line"], each["checks"], each["ended_at"]) for each in await found(api)]
    assert told == [("office", None, 2, None), ("home", None, 3, at(4))]
    assert [each["site"] for each in await found(api, site="office")] == ["office"]
    assert len(await found(api, limit=1)) == 1
    assert [each["checks"] for each in await found(api, **{"from": at(2), "to": at(4), "site": "home"})] == [2]


async def test_schedules_are_told_apart(api: httpx.AsyncClient, database: Connection) -> None:
    """They may ask for different targets: what one of them reaches does not end what another does not."""
    await look(database, "uuuuuuu")
    await look(database, "udddddu", schedule="office-vpn")
    await look(database, "uuuuddu", schedule=None)
    told = [(each["schedule"], each["checks"], each["started_at"], each["ended_at"]) for each in await found(api)]
    assert told == [(None, 2, at(4), at(6)), ("office-vpn", 5, at(1), at(6))]
    assert [each["schedule"] for each in await found(api, schedule="office-vpn")] == ["office-vpn"]


async def test_the_order_is_that_of_looking(api: httpx.AsyncClient, database: Connection) -> None:
    """A check that was caught up late tells of the time when it looked, not of when it was due."""
    await look(database, "u du")
    await insert(
        database,
        row(
            T0 + TEN,
            engine="connectivity",
            status="failed",
            started_at=T0 + 5 * TEN,
            finished_at=T0 + 5 * TEN,
            failure_kind="line_down",
            failure_message="late",
        ),
    )
    assert [(each["started_at"], each["open"]) for each in await found(api)] == [(at(5), True), (at(2), False)]


async def test_a_period_that_is_none_is_refused(api: httpx.AsyncClient) -> None:
    """Backwards, or more than 31 days."""
    for since, until in (("2026-10-02T00:00:00Z", "2026-10-01T00:00:00Z"), ("2026-08-01T00:00:00Z", "2026-10-01T00:00:00Z")):
        answer = await api.get("/api/v1/outages", params={"from": since, "to": until})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "from"


async def test_a_month_of_checks_takes_a_moment(api: httpx.AsyncClient, database: Connection) -> None:
    """At ten seconds between checks of one line; without its own partitions, of which a month is one."""
    await database.execute("SELECT results_partition('2026-10-01')")
    await database.execute(
        """
        INSERT INTO results (run_id, due_at, site, trigger, engine, status, attempt, started_at, finished_at, failure_kind, failure_message)
        SELECT gen_random_uuid(), at, 'home', 'schedule', 'connectivity', CASE WHEN down THEN 'failed' ELSE 'succeeded' END, 1, at, at,
          CASE WHEN down THEN 'line_down' END, CASE WHEN down THEN 'none of 4 targets is reachable' END
        FROM (
          SELECT at, extract(epoch FROM at)::bigint / 3600 % 24 = 3 AS down
          FROM generate_series('2026-10-01'::timestamptz, '2026-10-31 23:59:50+00', '10 seconds') AS at
        ) AS made
        """
    )
    started = time.monotonic()
    outages = await found(api, **{"from": "2026-10-01T00:00:00Z", "to": "2026-11-01T00:00:00Z"})
    took_s = time.monotonic() - started
    assert [each["duration_s"] for each in outages] == [3_600] * 31
    assert took_s < 5, f"{took_s:.1f} s"


async def test_the_command_lists_them(nats_server: Nats, database_url: str, database: Connection, tmp_path: Path) -> None:
    """One a line, for people and as JSON; an open one says so; without any, what would look for them."""
    with api_server(nats_server.url, database_url, tmp_path) as api:
        refresher = Refresher(REFRESHER_API_URL=api.url)
        period = ("--from", PERIOD["from"], "--to", PERIOD["to"])
        assert "--engine connectivity" in refresher("outages", *period).stderr
        await look(database, "uddun")
        newest, oldest = refresher("outages", *period).stdout.splitlines()[1:]
        assert newest.split("\t") == [at(4), "open", "0:00:00", "home", "-", "hourly", "1", "dns_down", "check 4"]
        assert oldest.split("\t") == [at(1), at(3), "0:00:20", "home", "-", "hourly", "2", "line_down", "check 2"]
        assert [each["open"] for each in refresher.json("outages", *period)] == [True, False]
        assert len(refresher.json("outages", *period, "--limit", "1", "--site", "home", "--schedule", "hourly")) == 1
