"""Reading results through the API, from a real Postgres."""

import asyncio
import csv
import io
import json
import statistics
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest

from services.api.newest import EACH_TIME
from services.api.queries import NEWEST
from shared.database import Connection
from tests.integration.api_server import api_server, in_process
from tests.integration.rows import insert, row
from tests.servers import Nats

T0 = datetime(2026, 9, 30, 22, tzinfo=UTC)


@pytest.fixture
async def api(nats_server: Nats, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an API on this test's database."""
    async with in_process(nats_server.url, database_url) as client:
        yield client


async def _ids(api: httpx.AsyncClient, path: str = "/api/v1/results", **parameters: Any) -> list[str]:
    answer = await api.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return [item["run_id"] for item in answer.json()["items"]]


async def test_a_result_is_complete(api: httpx.AsyncClient, database: Connection) -> None:
    """Every key is there, null when absent; times are UTC with Z; lists leave the log out and the single result has it."""
    (run_id,) = await insert(
        database,
        row(
            T0,
            server_id="4711",
            server_latitude=50.5,
            client_isp='Ein "Anbieter" \u2028',
            packet_loss=0.0,
            download_latency_s=0.05,
            responsiveness_rpm=900.5,
            bufferbloat_grade="B",
            download_spread=0.0,
            limited_by="line",
            confidence="reliable",
            download_bytes=2**62,
            details='{"b": [1, null], "a": "x"}',
            log="line 1\nline 2",
        ),
    )
    found = (await api.get(f"/api/v1/results/{run_id}")).json()
    assert found == {
        "run_id": str(run_id),
        "site": "home",
        "schedule": "hourly",
        "trigger": "schedule",
        "engine": "speedtest",
        "engine_version": None,
        "fallback_for": None,
        "status": "succeeded",
        "runner": None,
        "line": None,
        "attempt": 1,
        "recorded_at": found["recorded_at"],
        "due_at": "2026-09-30T22:00:00.000000Z",
        "start_at": "2026-09-30T22:00:00.000000Z",
        "started_at": "2026-09-30T22:00:00.000000Z",
        "finished_at": "2026-09-30T22:00:20.000000Z",
        "download_bps": 94e6,
        "upload_bps": 38e6,
        "latency_s": 0.012,
        "jitter_s": 0.001,
        "packet_loss": 0,
        "download_latency_s": 0.05,
        "upload_latency_s": None,
        "responsiveness_rpm": 900.5,
        "bufferbloat_grade": "B",
        "download_spread": 0,
        "upload_spread": None,
        "limited_by": "line",
        "confidence": "reliable",
        "download_bytes": 2**62,
        "upload_bytes": None,
        "server": {
            "id": "4711",
            "name": None,
            "sponsor": None,
            "url": None,
            "host": None,
            "country": None,
            "country_code": None,
            "latitude": 50.5,
            "longitude": None,
            "distance_m": None,
        },
        "client": {"isp": 'Ein "Anbieter" \u2028', "address": None, "country_code": None, "latitude": None, "longitude": None},
        "failure": None,
        "details": {"a": "x", "b": [1, None]},
        "log": "line 1\nline 2",
    }
    (listed,) = (await api.get("/api/v1/results")).json()["items"]
    assert listed == {key: value for key, value in found.items() if key != "log"}
    assert (await api.get("/api/v1/results/latest")).json() == found


async def test_a_failure_says_why(api: httpx.AsyncClient, database: Connection) -> None:
    """Kind and message are one object, and no number is made up."""
    await insert(database, row(T0, status="failed"))
    found = (await api.get("/api/v1/results/latest")).json()
    assert found["failure"] == {"kind": "timeout", "message": "no answer within 60 s"}
    assert found["server"] is found["client"] is found["download_bps"] is None


async def test_filters_select(api: httpx.AsyncClient, database: Connection) -> None:
    """Each filter selects what it names; `from` is inclusive, `to` exclusive; the newest comes first."""
    rows = [
        row(T0),
        row(T0 + timedelta(hours=1), site="office"),
        row(T0 + timedelta(hours=2), schedule=None, trigger="manual"),
        row(T0 + timedelta(hours=3), engine="noop"),
        row(T0 + timedelta(hours=4), status="missed"),
        row(T0 - timedelta(hours=1), site="cabin", line="lte"),
    ]
    plain, office, manual, noop, missed = map(str, await insert(database, *rows[:5]))
    (lte,) = map(str, await insert(database, *rows[5:]))
    assert await _ids(api) == [missed, noop, manual, office, plain, lte]
    assert await _ids(api, line="lte") == [lte]
    assert await _ids(api, line="") == [missed, noop, manual, office, plain]
    assert await _ids(api, site="office") == [office]
    assert await _ids(api, schedule="hourly") == [missed, noop, office, plain, lte]
    assert await _ids(api, engine="noop") == [noop]
    assert await _ids(api, status="missed") == [missed]
    assert await _ids(api, **{"from": "2026-09-30T23:00:00Z", "to": "2026-10-01T01:00:00Z"}) == [manual, office]
    assert await _ids(api, **{"from": "2026-10-01T01:00:00+02:00", "site": "home"}) == [missed, noop, manual]
    assert (await api.get("/api/v1/results/latest", params={"site": "home", "engine": "speedtest", "status": "succeeded"})).json()[
        "run_id"
    ] == manual


async def test_pages_stay_in_place_while_results_arrive(api: httpx.AsyncClient, database: Connection) -> None:
    """Following `next` gives each of the rows that were there exactly once, also where many share an instant."""
    expected = await insert(database, *(row(T0 + timedelta(minutes=number // 4)) for number in range(40)))
    seen: list[str] = []
    cursor = None
    while True:
        page = (await api.get("/api/v1/results", params={"limit": 7, **({"cursor": cursor} if cursor else {})})).json()
        assert len(page["items"]) <= 7
        seen += [item["run_id"] for item in page["items"]]
        await insert(database, row(T0 + timedelta(days=1)))
        if (cursor := page["next"]) is None:
            break
    assert len(seen) == 40
    assert set(seen) == set(map(str, expected))
    assert await _ids(api, limit=1000) != seen


async def test_the_last_full_page_has_no_next(api: httpx.AsyncClient, database: Connection) -> None:
    """A page that ends exactly at the last row does not promise another."""
    await insert(database, row(T0), row(T0 + timedelta(hours=1)))
    assert (await api.get("/api/v1/results", params={"limit": 2})).json()["next"] is None
    assert (await api.get("/api/v1/results", params={"limit": 1})).json()["next"] is not None


async def test_what_is_not_there_is_a_404_problem(api: httpx.AsyncClient) -> None:
    """Unknown runs, no newest result and unknown paths are problem documents."""
    for path in (f"/api/v1/results/{uuid4()}", "/api/v1/results/latest", "/api/speedtest/latest", "/api/v1/nothing", "/"):
        answer = await api.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert answer.json()["status"] == 404
        assert answer.json()["detail"]


WRONG = [
    ("results?limit=0", "limit"),
    ("results?limit=1001", "limit"),
    ("results?limit=" + "9" * 5000, "limit"),
    ("results?site=UPPER", "site"),
    ("results?site=%00", "site"),
    ("results?site=%ED%A0%80", "site"),
    ("results?sites=home", "sites"),
    ("results?site=home&site=office", "site"),
    ("results?status=great", "status"),
    ("results?from=yesterday", "from"),
    ("results?from=0", "from"),
    ("results?from=2026-10-01T00:00:00", "from"),
    ("results?from=2026-02-30T00:00:00Z", "from"),
    ("results?from=9999-12-31T23:59:59-23:59", "from"),
    ("results?from=0001-01-01T00:00:00%2B23:59", "from"),
    ("results?to=2026-10-01T00:00:00%2B99:99", "to"),
    ("results?cursor=x", "cursor"),
    ("results?cursor=" + "f" + "_" * 31, "cursor"),
    ("results/latest?limit=1", "limit"),
    ("results/not-a-uuid", "run_id"),
    ("results/export?format=xml", "format"),
    ("summary?bucket=year", "bucket"),
    ("summary?zone=Europe/Nowhere", "zone"),
    ("summary?zone=../../etc/passwd", "zone"),
    ("summary?zone=%00", "zone"),
    ("summary?zone=localtime", "zone"),
    ("results?from=2026-10-02T00:00:00Z&to=2026-10-01T00:00:00Z", "to"),
    ("results/export?from=2026-10-01T00:00:00Z&to=2026-10-01T00:00:00Z", "to"),
    ("summary?from=2000-01-01T00:00:00Z&bucket=hour", "bucket"),
    ("summary?from=2026-10-01T00:00:00Z&to=2026-10-01T00:00:00Z", "from"),
    ("events?site=%20", "site"),
    ("schedules/Not%20A%20Name", "name"),
    ("schedules?page=2", "page"),
]


async def test_a_wrong_parameter_is_named(api: httpx.AsyncClient) -> None:
    """Whatever is given to a parameter, the answer is a 422 problem that names it: never a 500, never everything."""
    for path, field in WRONG:
        answer = await api.get(f"/api/v1/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), path
        assert answer.json()["errors"][0]["field"] == field, path


async def test_an_export_is_what_the_pages_say(api: httpx.AsyncClient, database: Connection) -> None:
    """NDJSON has the results of the list, the oldest first; CSV has the same values, flat, and text survives as it is."""
    nasty = 'a,"b"\nc\td; =1+1'
    await insert(database, *(row(T0 + timedelta(hours=n), server_name=nasty) for n in range(3)), row(T0, site="office"))
    items = (await api.get("/api/v1/results", params={"site": "home"})).json()["items"]
    answer = await api.get("/api/v1/results/export", params={"format": "ndjson", "site": "home"})
    assert [json.loads(line) for line in answer.text.splitlines()] == items[::-1]
    assert answer.headers["content-disposition"] == 'attachment; filename="refresher-results.ndjson"'
    answer = await api.get("/api/v1/results/export", params={"site": "home"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [each["run_id"] for each in rows] == [item["run_id"] for item in items[::-1]]
    assert rows[0]["server_name"] == nasty
    assert (float(rows[0]["download_bps"]), rows[0]["packet_loss"], rows[0]["failure_kind"]) == (94e6, "", "")
    assert rows[0]["due_at"] == "2026-09-30T22:00:00.000000Z"


async def test_an_empty_export_is_a_file(api: httpx.AsyncClient) -> None:
    """Nothing to export is a header alone, or nothing at all."""
    assert (await api.get("/api/v1/results/export")).text.startswith("run_id,site,")
    assert (await api.get("/api/v1/results/export", params={"format": "ndjson"})).text == ""


async def test_an_export_streams(nats_server: Nats, database_url: str, database: Connection, tmp_path: Path) -> None:
    """The first line arrives before the last row is read: a reader that stops keeps the query open, and memory flat."""
    await database.execute("SELECT results_partition('2026-10-01')")
    await database.execute(
        """INSERT INTO results (run_id, due_at, site, trigger, engine, status, attempt, finished_at, failure_kind, failure_message)
        SELECT gen_random_uuid(), timestamptz '2026-10-01Z' + n * interval '1 second', 'home', 'schedule', 'noop', 'failed', 1, now(),
          'timeout', repeat('x', 2000) FROM generate_series(1, 20000) AS n"""
    )
    with api_server(nats_server.url, database_url, tmp_path) as api:
        resident = _resident_bytes(api.process.pid)
        async with api.client() as client, client.stream("GET", "/api/v1/results/export?format=ndjson") as answer:
            lines = answer.aiter_lines()
            first = json.loads(await anext(lines))
            reading = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refresher-api' AND state LIKE 'idle in transaction%'"
            await _until(database, reading)
            rest = [json.loads(line)["due_at"] async for line in lines]
            assert _resident_bytes(api.process.pid) - resident < 16 * 2**20  # the file has 50 MB
    assert first["due_at"] < rest[0]
    assert len(rest) == 19_999
    assert all(earlier < later for earlier, later in pairwise(rest))


async def _until(database: Connection, sql: str, deadline_s: float = 10) -> None:
    end = asyncio.get_running_loop().time() + deadline_s
    while not await database.fetchval(sql):
        assert asyncio.get_running_loop().time() < end, sql
        await asyncio.sleep(0.02)


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def _percentile(values: list[float], share: float) -> float:
    """Interpolate as percentile_cont says: at (n - 1) * share between the two nearest."""
    ordered, position = sorted(values), share * (len(values) - 1)
    low = int(position)
    return ordered[low] + (position - low) * (ordered[min(low + 1, len(values) - 1)] - ordered[low])


async def test_a_summary_is_true(api: httpx.AsyncClient, database: Connection) -> None:
    """Counts, mean, minimum, maximum and percentiles per day are those calculated here, across a change of the clock."""
    zone = ZoneInfo("Europe/Berlin")
    since, until = datetime(2026, 10, 24, tzinfo=zone).astimezone(UTC), datetime(2026, 10, 27, tzinfo=zone).astimezone(UTC)
    statuses = ("succeeded", "succeeded", "failed", "succeeded", "skipped", "missed", "succeeded")
    rows = []
    for number in range(73 * 4):  # three days and the hour that comes twice
        status = statuses[number % 7]
        rate = {"download_bps": 50e6 + (number * 7919) % 1000 * 1e4, "jitter_s": None} if status == "succeeded" else {}
        rows.append(row(since + timedelta(minutes=15 * number), status=status, **rate))
    await insert(database, *rows, row(until), row(since - timedelta(seconds=1)), row(since, site="office"))
    period = {"from": since.isoformat(), "to": until.isoformat()}
    answer = await api.get("/api/v1/summary", params={**period, "bucket": "day", "zone": "Europe/Berlin", "site": "home"})
    buckets = answer.json()["buckets"]
    assert [bucket["from"][:13] for bucket in buckets] == ["2026-10-23T22", "2026-10-24T22", "2026-10-25T23"]
    assert [sum(bucket["counts"].values()) for bucket in buckets] == [96, 100, 96]
    for bucket in buckets:
        inside = [each for each in rows if bucket["from"] <= each["due_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ") < bucket["to"]]
        assert bucket["counts"] == {
            status: sum(each["status"] == status for each in inside) for status in ("succeeded", "failed", "skipped", "missed")
        }
        rates = [each["download_bps"] for each in inside if each["status"] == "succeeded"]
        assert bucket["metrics"]["download_bps"] == pytest.approx(
            {
                "count": len(rates),
                "mean": statistics.fmean(rates),
                "min": min(rates),
                "max": max(rates),
                "p50": _percentile(rates, 0.5),
                "p95": _percentile(rates, 0.95),
            }
        )
        assert bucket["metrics"]["jitter_s"] is None
        assert bucket["metrics"]["packet_loss"] is None


async def test_a_summary_has_empty_buckets(api: httpx.AsyncClient) -> None:
    """A bucket in which nothing was due is there, with counts of 0: a graph shows the gap."""
    summary = (
        await api.get("/api/v1/summary", params={"from": "2026-10-01T10:30:00Z", "to": "2026-10-01T12:10:00Z", "bucket": "hour"})
    ).json()
    assert [(bucket["from"][11:16], bucket["to"][11:16]) for bucket in summary["buckets"]] == [
        ("10:30", "11:00"),
        ("11:00", "12:00"),
        ("12:00", "12:10"),
    ]
    assert summary["buckets"][0]["counts"] == {"succeeded": 0, "failed": 0, "skipped": 0, "missed": 0}
    assert set(summary["buckets"][0]["metrics"].values()) == {None}


async def test_a_summary_is_of_the_last_30_days(api: httpx.AsyncClient, database: Connection) -> None:
    """Without a period it is the last 30 days, in one bucket."""
    now = datetime.now(UTC)
    await insert(database, row(now - timedelta(days=29)), row(now - timedelta(days=31)))
    summary = (await api.get("/api/v1/summary")).json()
    assert (summary["bucket"], summary["zone"], len(summary["buckets"])) == ("none", "UTC", 1)
    assert summary["buckets"][0]["counts"]["succeeded"] == 1


async def test_dashboards_read_their_units(api: httpx.AsyncClient, database: Connection) -> None:
    """The form of speedtest-tracker has ms and Mbit/s, and null after a failure; skipped runs do not count."""
    first, second = await insert(
        database, row(T0, server_id="1", server_host="h", server_name="n"), row(T0 + timedelta(hours=1), status="skipped")
    )
    found = (await api.get("/api/speedtest/latest")).json()
    assert found["message"] == "ok"
    data = found["data"]
    assert UUID(data.pop("id")) == first
    assert data == pytest.approx(
        {
            "ping": 12.0,
            "download": 94.0,
            "upload": 38.0,
            "server_id": "1",
            "server_host": "h",
            "server_name": "n",
            "url": None,
            "scheduled": True,
            "failed": False,
            "created_at": data["created_at"],
            "updated_at": data["updated_at"],
        }
    )
    (failed,) = await insert(database, row(T0 + timedelta(hours=2), status="failed", trigger="manual"))
    data = (await api.get("/api/speedtest/latest")).json()["data"]
    assert (data["id"], data["failed"], data["scheduled"], data["ping"]) == (str(failed), True, False, None)
    assert second not in {first, failed}


async def test_hot_queries_use_their_index(database: Connection) -> None:
    """The newest page and the newest results of each site and engine touch a handful of rows, however many there are."""
    await database.execute("SELECT results_partition('2026-10-01')")
    await database.execute(
        """INSERT INTO results (run_id, due_at, site, trigger, engine, status, attempt, finished_at, download_bps)
        SELECT gen_random_uuid(), timestamptz '2026-10-01Z' + n * interval '1 second', 'site-' || n % 5, 'schedule', 'noop', 'succeeded',
          1, now(), 1 FROM generate_series(1, 50000) AS n"""
    )
    await database.execute("ANALYZE results")
    page = "SELECT run_id FROM results WHERE true ORDER BY due_at DESC, run_id DESC LIMIT $1"
    for sql, limit in ((NEWEST, EACH_TIME), (page, 101)):
        (plan,) = json.loads(await database.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON, BUFFERS) {sql}", limit))
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 400, json.dumps(plan)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/results?limit=2",
        "/api/v1/results/latest",
        "/api/v1/results/{run_id}",
        "/api/v1/summary?from=2026-09-01T00:00:00Z&to=2026-11-01T00:00:00Z",
    ],
)
async def test_what_a_client_has_already_is_not_sent_again(api: httpx.AsyncClient, database: Connection, path: str) -> None:
    """The ETag of an answer, shown again, gives 304 without a body; any change of what is stored gives the whole new answer:
    a row that was replaced, one that came, and one that retention dropped.
    """
    (run_id,) = await insert(database, row(T0))
    path = path.format(run_id=run_id)
    changes = [
        "UPDATE results SET download_bps = 95e6",
        "DELETE FROM results WHERE due_at > '2026-09-30T23:00:00Z'",
        "DROP TABLE results_2026_09",
    ]
    for change in changes:
        first = await api.get(path)
        etag = first.headers["etag"]
        for shown in (etag, f'"other", W/{etag}', "*"):
            again = await api.get(path, headers={"If-None-Match": shown})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
            assert "content-type" not in again.headers
        assert first.headers["cache-control"] == again.headers["cache-control"] == "private, no-cache"
        assert (await api.get(path, headers={"If-None-Match": '"other"'})).content == first.content
        await database.execute(change)
        if change.startswith("UPDATE"):
            await insert(database, row(T0 + timedelta(hours=1, minutes=1), run_id=uuid4()))
        changed = await api.get(path, headers={"If-None-Match": etag})
        if change.startswith("DELETE") and str(run_id) in path:
            assert changed.status_code == 304
            continue
        assert changed.status_code in {200, 404}
        assert changed.headers.get("etag") != etag
