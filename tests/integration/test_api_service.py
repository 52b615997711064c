"""What surrounds the API's operations: outages, metrics, and what every request passes."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from services.api.app import build
from services.api.settings import ApiSettings
from shared import subjects
from shared.database import Connection
from shared.migrate import migrate
from shared.schedules import Interval, Schedule
from tests.integration.api_server import api_server, in_process
from tests.integration.conftest import Bus
from tests.integration.rows import insert, row
from tests.servers import Nats, Postgres, running

NOW = datetime.now(UTC)
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def api(nats_server: Nats, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an API on this test's servers."""
    async with in_process(nats_server.url, database_url) as client:
        yield client


async def _migrated(server: Postgres) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            connection = await asyncpg.connect(server.url)
            break
        except asyncpg.CannotConnectNowError:  # it listens before it is ready
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
    await migrate(connection)
    await insert(connection, row(NOW))
    await connection.close()


async def test_it_starts_without_postgres_and_resumes(nats_server: Nats, open_directory: Path, tmp_path: Path) -> None:
    """Without Postgres it is up: what needs it is a 503 problem, the rest works; afterwards all of it, without a restart."""
    with running(Postgres(open_directory)) as server:
        assert isinstance(server, Postgres)
        server.stop()
        with api_server(nats_server.url, server.url, tmp_path, ready=False) as running_api:
            async with running_api.client() as client:
                await _away(client)
                server.start()
                await _back(client)
                assert (await client.get("/api/v1/results")).status_code == 503  # no tables yet
                assert "refresher migrate" in (await client.get("/api/v1/results")).json()["detail"]
                await _migrated(server)
                assert len((await client.get("/api/v1/results")).json()["items"]) == 1
                server.stop()
                await _away(client)
                server.start()
                await _back(client)
                end = time.monotonic() + 20
                while (await client.get("/api/v1/results")).status_code != 200:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.05)
                assert (await client.get("/health/ready")).json() == {"status": "up", "down": {}}
                assert "speedtest_up{" in (await client.get("/metrics")).text


async def _away(client: httpx.AsyncClient) -> None:
    for path in ("results", "results/latest", "results/export", "results/export?format=ndjson", "summary"):
        answer = await client.get(f"/api/v1/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), path
        assert answer.headers["retry-after"]
        assert "Postgres at 127.0.0.1" in answer.json()["detail"]
        assert "refresher:" not in answer.text
    ready = await client.get("/health/ready")
    assert (ready.status_code, list(ready.json()["down"])) == (503, ["postgres"])
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/api/v1/schedules")).status_code == 200
    metrics = await client.get("/metrics")
    assert metrics.status_code == 200
    assert "speedtest_up{" not in metrics.text


async def _back(client: httpx.AsyncClient) -> None:
    """Wait until Postgres answers, with tables or without."""
    end = time.monotonic() + 20
    while "does not answer" in (await client.get("/health/ready")).text:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def _samples(api: httpx.AsyncClient) -> dict[str, float]:
    lines = (await api.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def test_the_last_values_are_gauges(api: httpx.AsyncClient, database: Connection) -> None:
    """Each site and engine shows its newest success or failure; a value is absent after a failure; skipped runs do not count."""
    hour = timedelta(hours=1)
    await insert(
        database,
        row(NOW - 4 * hour, server_id="4711"),
        row(NOW - 3 * hour, status="missed"),
        row(NOW - 2 * hour, status="skipped"),
        row(NOW - 9 * hour, download_bps=1.0),
        row(NOW - 8 * hour, engine="noop", jitter_s=None, server_id="fra-1"),
        row(NOW - 5 * hour, site="office"),
        row(NOW - 1 * hour, site="office", status="failed", server_id="4711"),
        row(NOW - 1 * hour, site="silent", status="missed"),
    )
    samples = await _samples(api)
    last = {name: value for name, value in samples.items() if name.startswith(("speedtest_", "refresher_result_age"))}
    home, noop, office = 'engine="speedtest",site="home"', 'engine="noop",site="home"', 'engine="speedtest",site="office"'
    ages = {each: last.pop(f"refresher_result_age_seconds{{{each}}}") for each in (home, noop, office)}
    assert last == pytest.approx(
        {
            f"speedtest_up{{{home}}}": 1,
            f"speedtest_download_bits_per_second{{{home}}}": 94e6,
            f"speedtest_upload_bits_per_second{{{home}}}": 38e6,
            f"speedtest_ping_latency_milliseconds{{{home}}}": 12,
            f"speedtest_jitter_latency_milliseconds{{{home}}}": 1,
            f"speedtest_server_id{{{home}}}": 4711,
            f"speedtest_up{{{noop}}}": 1,
            f"speedtest_download_bits_per_second{{{noop}}}": 94e6,
            f"speedtest_upload_bits_per_second{{{noop}}}": 38e6,
            f"speedtest_ping_latency_milliseconds{{{noop}}}": 12,
            f"speedtest_up{{{office}}}": 0,
        }
    )
    elapsed = (datetime.now(UTC) - NOW).total_seconds() - 20  # a run takes 20 s here
    assert ages == pytest.approx({home: 4 * 3600 + elapsed, noop: 8 * 3600 + elapsed, office: 3600 + elapsed}, abs=5)


async def test_each_line_has_its_own_gauges(api: httpx.AsyncClient, bus: Bus, database: Connection) -> None:
    """One that measures seldom is not lost among the runs of another; what any line may measure is as old as the newest of all."""
    minute = timedelta(minutes=1)
    await insert(
        database,
        row(NOW - 500 * minute, line="lte", download_bps=20e6),
        *(row(NOW - (100 + number) * minute) for number in range(50)),
        row(NOW - 10 * minute, line="dsl", status="failed"),
        row(NOW - 20 * minute, line="dsl", status="failed"),
    )
    timing = Interval(every_s=60, phase_s=0)
    begins = datetime.now(UTC) - timedelta(days=1)
    await bus.put(Schedule(name="free", engine="speedtest", timing=timing, active_since=begins, line="any"))
    await bus.put(Schedule(name="mobile", engine="speedtest", timing=timing, active_since=begins, line="lte"))
    for again in (False, True):
        if again:
            await insert(database, *(row(NOW - number * minute, line="dsl", status="failed") for number in range(3)))
        samples = await _samples(api)
        of = {line: f'{{engine="speedtest",line="{line}",site="home"}}' for line in ("lte", "dsl", "any")}
        of[""] = '{engine="speedtest",site="home"}'
        rates = {name: value for name, value in samples.items() if name.startswith("speedtest_download_")}
        assert rates == {f"speedtest_download_bits_per_second{of['']}": 94e6, f"speedtest_download_bits_per_second{of['lte']}": 20e6}
        in_a_row = {line: samples.get(f"refresher_failed_runs_in_a_row{of[line]}") for line in of}
        assert in_a_row == {"": 0, "lte": 0, "dsl": 5 if again else 2, "any": None}
        elapsed = (datetime.now(UTC) - NOW).total_seconds() - 20
        ages = {line: samples[f"refresher_result_age_seconds{of[line]}"] - elapsed for line in of}
        newest = 0 if again else 600
        assert ages == pytest.approx({"": 6_000, "lte": 30_000, "dsl": newest, "any": newest}, abs=5)
        limits = {name for name in samples if name.startswith("refresher_result_age_limit")}
        assert limits == {f"refresher_result_age_limit_seconds{of[line]}" for line in ("any", "lte")}


async def test_runs_in_a_row_are_gauges(api: httpx.AsyncClient, database: Connection) -> None:
    """Failures since the last success, and the best and worst of the last three rates; both among the newest ten runs."""
    hour = timedelta(hours=1)
    rates = {number: row(NOW - number * hour, download_bps=number * 1e6) for number in (4, 5, 6, 7)}
    await insert(
        database,
        row(NOW - 1 * hour, status="failed"),
        row(NOW - 2 * hour, status="missed"),
        row(NOW - 3 * hour, status="failed"),
        *rates.values(),
        row(NOW - 8 * hour, status="failed"),
        *(row(NOW - number * hour, site="down", status="failed") for number in range(1, 13)),
        *(row(NOW - number * hour, site="down") for number in range(13, 20)),
        row(NOW - 1 * hour, site="new", download_latency_s=0.05, responsiveness_rpm=900.0),
        row(NOW - 2 * hour, site="new"),
    )
    samples = await _samples(api)
    of = {site: f'{{engine="speedtest",site="{site}"}}' for site in ("home", "down", "new")}
    in_a_row = {site: samples[f"refresher_failed_runs_in_a_row{of[site]}"] for site in of}
    assert in_a_row == {"home": 2, "down": 10, "new": 0}
    rate = {
        name: value for name, value in samples.items() if name.startswith(("refresher_download_", "refresher_upload_", "refresher_resp"))
    }
    assert rate == {
        f"refresher_download_best_of_3_bits_per_second{of['home']}": 6e6,
        f"refresher_download_worst_of_3_bits_per_second{of['home']}": 4e6,
        f"refresher_download_latency_seconds{of['new']}": 0.05,
        f"refresher_responsiveness_rpm{of['new']}": 900,
    }


async def test_the_limit_of_age_is_known_from_the_schedules(
    api: httpx.AsyncClient, bus: Bus, nats_server: Nats, database: Connection
) -> None:
    """How old the newest result of a site and engine may be, even if there never was one; absent while NATS is away."""
    now = datetime.now(UTC)
    in_the_middle = Interval(every_s=600, phase_s=int(now.timestamp() + 300) % 600)
    for name, begins in (("often", now - timedelta(days=1)), ("new", now)):
        await bus.put(Schedule(name=name, engine="noop", sites=(name, "home"), timing=in_the_middle, active_since=begins))
    await (await bus.js.key_value(subjects.SCHEDULES)).put("broken", b"no schedule")
    await insert(database, row(NOW))

    async def limits() -> dict[str, float]:
        samples = await _samples(api)
        assert 'speedtest_up{engine="speedtest",site="home"}' in samples
        return {name: value for name, value in samples.items() if name.startswith("refresher_result_age_limit_seconds")}

    of = {site: f'refresher_result_age_limit_seconds{{engine="noop",site="{site}"}}' for site in ("often", "home")}
    assert await limits() == {each: pytest.approx(1_500, abs=20) for each in of.values()}
    nats_server.kill()
    end = time.monotonic() + 20
    while await limits():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    nats_server.start()
    while not await limits():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_requests_are_counted_by_template(api: httpx.AsyncClient) -> None:
    """Labels are the route's template, the method and the class of the status: nothing that a client makes up."""
    for number in range(3):
        await api.get(f"/api/v1/schedules/name-{number}")
        await api.get(f"/nothing/{number}")
        await api.request(f"BREW{number}", f"/api/v1/results?x={number}")
    samples = {name: value for name, value in (await _samples(api)).items() if name.startswith("refresher_api_requests_total")}
    assert samples == {
        'refresher_api_requests_total{method="GET",route="/api/v1/schedules/{name}",status="4xx"}': 3,
        'refresher_api_requests_total{method="GET",route="unknown",status="4xx"}': 3,
        'refresher_api_requests_total{method="other",route="/api/v1/results",status="4xx"}': 3,
    }
    name = 'refresher_api_request_seconds_count{method="GET",route="/api/v1/schedules/{name}"}'
    assert (await _samples(api))[name] == 3


async def test_foreign_host_names_are_refused(api: httpx.AsyncClient, nats_server: Nats, database_url: str) -> None:
    """A name that somebody points here (DNS rebinding) is a 421; loopback names and addresses pass, others when the setting lists them."""
    for host in (
        "localhost",
        "LOCALHOST:8470",
        "refresher.localhost",
        "127.0.0.1:1",
        "127.1.2.3",
        "[::1]:8470",
        "192.0.2.1:8470",
        "localhost.",
    ):
        assert (await api.get("/api/v1/schedules", headers={"Host": host})).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "a b", "@localhost@evil"):
        answer = await api.get("/api/v1/schedules", headers={"Host": host})
        assert (answer.status_code, answer.headers["content-type"]) == (421, "application/problem+json"), host
    assert (await api.get("/health/ready", headers={"Host": "10.0.0.7"})).status_code == 200
    async with in_process(nats_server.url, database_url, api_hosts="Refresher.Example, other") as configured:
        assert (await configured.get("/api/v1/schedules", headers={"Host": "refresher.example:443"})).status_code == 200
        assert (await configured.get("/api/v1/schedules", headers={"Host": "evil.example"})).status_code == 421
    async with in_process(nats_server.url, database_url, api_hosts="*") as configured:
        assert (await configured.get("/api/v1/schedules", headers={"Host": "any.example"})).status_code == 200


async def test_another_site_cannot_change_anything(api: httpx.AsyncClient) -> None:
    """What a form or a script elsewhere may send without asking first is a 415; there is no CORS to allow more."""
    path = "/api/v1/runs"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx"):
        answer = await api.post(path, content='{"engine": "noop"}', headers={"Content-Type": kind})
        assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    assert (await api.post(path, content='{"engine": "noop"}')).status_code == 415
    for browser in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert (await api.post("/api/v1/schedules/hourly/pause", headers=browser)).status_code == 415
    asked = await api.options(path, headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]
    assert (
        await api.post(path, content='{"engine": "noop"}', headers={"Content-Type": "Application/JSON; charset=utf-8"})
    ).status_code == 202
    assert (await api.post("/api/v1/schedules/hourly/pause")).status_code == 404  # no browser: nothing is in the way


async def test_long_bodies_are_refused(nats_server: Nats, database_url: str, tmp_path: Path) -> None:
    """More than 64 KB is a 413, whether the length is announced or the body comes in chunks, for every method."""

    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" " * 1024

    with api_server(nats_server.url, database_url, tmp_path) as running_api:
        async with running_api.client() as client:
            for content in (b" " * 65_537, chunks(65)):
                answer = await client.post("/api/v1/runs", content=content, headers=JSON)
                assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
            assert (await client.put("/api/v1/schedules/x", content=chunks(65), headers=JSON)).status_code == 413
            assert (await client.request("DELETE", "/api/v1/schedules/x", content=chunks(65))).status_code == 413
            assert (await client.post("/api/v1/runs", content=b" " * 65_536, headers=JSON)).status_code == 422
            assert (await client.post("/api/v1/runs", content=chunks(64), headers=JSON)).status_code == 422


async def test_every_answer_carries_the_headers(api: httpx.AsyncClient) -> None:
    """Answers are never sniffed, framed or run; the page of the documentation may load what it is made of, and no more."""
    for path in ("/api/v1/schedules", "/api/v1/nothing", "/openapi.json", "/metrics", "/api/v1/results?limit=0"):
        headers = (await api.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    docs = await api.get("/docs")
    assert docs.status_code == 200
    assert "https://cdn.jsdelivr.net" in docs.headers["content-security-policy"]
    assert "default-src 'none'" in docs.headers["content-security-policy"]


async def test_a_defect_is_answered_like_everything_else(nats_server: Nats) -> None:
    """A problem document with the same headers, counted under its route; foreign names learn nothing of it."""

    async def broken() -> None:
        raise RuntimeError("of the code")

    service, app = build(ApiSettings(nats_url=nats_server.url))
    app.add_api_route("/broken", broken)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        got = await client.get("/broken")
        assert (got.status_code, got.headers["content-type"]) == (500, "application/problem+json")
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "of the code" not in got.text
        assert (await client.get("/broken", headers={"Host": "elsewhere.example"})).status_code == 421
    counted = {"route": "/broken", "method": "GET", "status": "5xx"}
    assert service.registry.get_sample_value("refresher_api_requests_total", counted) == 1


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"path": "/nothing"}, 'database "nothing" does not exist'),
        ({"netloc": "", "query": "password=secret"}, "password authentication failed"),
    ],
)
async def test_a_database_that_lets_nobody_in_is_away(nats_server: Nats, database_url: str, parts: dict[str, str], reason: str) -> None:
    """A database that is not there, or not yet, and a wrong password: 503 with the reason, and the scrape goes on."""
    whole = urlsplit(database_url)
    user, _, host = whole.netloc.rpartition("@")
    netloc = {"netloc": f"{user.partition(':')[0]}@{host}"} if "netloc" in parts else {}
    async with in_process(nats_server.url, whole._replace(**parts | netloc).geturl()) as client:
        got = await client.get("/api/v1/results")
        assert got.status_code == 503
        assert reason in got.json()["detail"]
        assert "secret" not in got.text + (await client.get("/health/ready")).text
        assert (await client.get("/metrics")).status_code == 200


async def test_a_stopped_service_leaves_no_watchdog(nats_server: Nats, database_url: str) -> None:
    """Whoever runs a service inside of another process (these tests) is not ended a minute after it stopped."""
    async with in_process(nats_server.url, database_url):
        watchdogs = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    assert watchdogs
    for thread in watchdogs:
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()


async def test_unknown_methods_are_405_problems(api: httpx.AsyncClient) -> None:
    """A method that a path does not know is a problem document, and `Allow` says which it knows."""
    answer = await api.delete("/api/v1/results")
    assert (answer.status_code, answer.headers["content-type"], answer.headers["allow"]) == (405, "application/problem+json", "GET")


ENDLESS = {
    "header": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: ",
    "headers": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n",
    "address": b"GET /health/live?",
    "trailer": b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: ",
    "chunk": b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;",
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_a_request_without_end_is_ended(nats_server: Nats, database_url: str, tmp_path: Path, what: str) -> None:
    """Whatever is no body is kept in memory: who sends more of it than anyone needs is let go."""
    more = b"X-More: or less\r\n" * 4_096 if what == "headers" else b"x" * 65_536
    with api_server(nats_server.url, database_url, tmp_path, ready=False) as running_api:
        _, port = running_api.url.rsplit(":", 1)
        _, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(ENDLESS[what])
        with pytest.raises(ConnectionError):
            await _send_on(writer, more)
        writer.transport.abort()


async def _send_on(writer: asyncio.StreamWriter, more: bytes) -> None:
    for _ in range(1_000):
        writer.write(more)
        await writer.drain()
        await asyncio.sleep(0)


async def test_a_body_in_the_smallest_pieces_is_read(nats_server: Nats, database_url: str, tmp_path: Path) -> None:
    """The frames of its chunks are five times what they hold, and that is no reason to let anybody go."""
    body = b'{"engine":"noop","site":"home"%s}' % (b" " * 60_000)

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(len(body)):
            yield body[number : number + 1]

    with api_server(nats_server.url, database_url, tmp_path, ready=False) as running_api:
        async with running_api.client() as client:
            answer = await client.post("/api/v1/runs", content=pieces(), headers=JSON)
    assert answer.status_code == 202, answer.text
