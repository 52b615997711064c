"""Runs on demand and the live feed, through a real server."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import nats
import pytest
from nats.aio.client import Client

from services.api.feed import CLIENTS, WAITING
from shared import subjects
from shared.database import Connection
from shared.events import Failure, Progress, Result, Status, Tick
from shared.provision import provision
from shared.publish import publish
from tests.integration.api_server import Api, api_server
from tests.integration.rows import insert, row
from tests.servers import Nats

Events = AsyncIterator[tuple[str, dict[str, Any]]]


@pytest.fixture
def api(nats_server: Nats, database_url: str, tmp_path: Path) -> Iterator[Api]:
    """Give a running API."""
    with api_server(nats_server.url, database_url, tmp_path) as running:
        yield running


@pytest.fixture
async def bus(nats_server: Nats) -> AsyncIterator[Client]:
    """Give a client of NATS."""
    client = await nats.connect(nats_server.url)
    await provision(client.jetstream())
    yield client
    await client.close()


def _tick(site: str = "home") -> Tick:
    now = datetime.now(UTC)
    return Tick(
        run_id=uuid4(), site=site, trigger="manual", engine="noop", due_at=now, published_at=now, expires_at=now + timedelta(hours=1)
    )


def _result(tick: Tick, log: str = "") -> Result:
    fields = tick.model_dump(include={"run_id", "site", "schedule", "trigger", "engine", "due_at"})
    failure = Failure(kind="timeout", message="no answer")
    return Result(**fields, status=Status.FAILED, finished_at=datetime.now(UTC), failure=failure, log=log)


async def _publish(bus: Client, event: Tick | Result | Progress) -> None:
    """Publish an event as the services do; the acknowledgement must be the server's."""
    if isinstance(event, Progress):
        await bus.publish(subjects.progress(event.run_id), event.to_json())
    elif isinstance(event, Tick):
        subject = subjects.manual_tick(event.site, event.schedule, event.run_id)
        assert await publish(bus.jetstream(), subjects.TICKS, subject, event.to_json(), str(event.run_id))
    else:
        subject = subjects.result(event.site, event.schedule)
        assert await publish(bus.jetstream(), subjects.RESULTS, subject, event.to_json(), f"result-{event.run_id}")


async def _parsed(answer: httpx.Response) -> Events:
    kind = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def _following(client: httpx.AsyncClient, path: str = "/api/v1/events") -> AsyncIterator[Events]:
    async with client.stream("GET", path) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _parsed(answer)


async def _next(events: Events) -> tuple[str, dict[str, Any]]:
    return await asyncio.wait_for(anext(events), 10)


async def _live_clients(client: httpx.AsyncClient, count: int) -> None:
    """Wait until the metrics say that so many clients listen."""
    end = time.monotonic() + 10
    while f"\nrefresher_api_live_clients {float(count)}\n" not in (await client.get("/metrics")).text:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_events_are_shown_as_they_pass(api: Api, bus: Client) -> None:
    """Ticks, progress and results arrive as they are on the bus, of one site when that is asked for; rubbish does not."""
    tick, elsewhere = _tick(), _tick("office")
    result = _result(tick)
    progress = Progress(run_id=tick.run_id, site="home", engine="noop", at=datetime.now(UTC), phase="download", rate_bps=1e6)
    async with api.client() as client, _following(client, "/api/v1/events?site=home") as home, _following(client) as everything:
        await bus.publish("refresher.progress.rubbish", b"\xff")
        await bus.publish("refresher.tick.home.rubbish.1", b'{"run_id": 1}')
        for event in (elsewhere, tick, progress, result):
            await _publish(bus, event)
        assert [await _next(home) for _ in range(3)] == [
            ("tick", json.loads(tick.to_json())),
            ("progress", json.loads(progress.to_json())),
            ("result", json.loads(result.to_json())),
        ]
        assert [kind for kind, _ in [await _next(everything) for _ in range(4)]] == ["tick", "tick", "progress", "result"]  # in order


async def test_a_slow_client_is_told_and_slows_nobody(api: Api, bus: Client) -> None:
    """A client that does not read loses the oldest events and is told how many; another one gets every event."""
    count, log = 3_000, "x" * 15_000  # 45 MB, far more than sockets hold
    host, port = "127.0.0.1", int(api.url.rsplit(":", 1)[1])
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect((host, port))
    slow.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    tick = _tick()
    async with api.client() as client, _following(client) as fast:
        await _live_clients(client, 2)
        for _ in range(count):
            await bus.publish(subjects.result("home", None), _result(tick, log).to_json())
            await bus.flush()  # at the pace of the server, not faster than one process can take
            kind, _data = await _next(fast)
            assert kind == "result"
        received = b""
        slow.settimeout(10)
        while b"event: lagged\ndata: " not in received:
            received = received[-100:] + slow.recv(1 << 20)
        while b"\n\n" not in received.split(b"event: lagged\ndata: ")[1]:
            received += slow.recv(1 << 20)
        lagged = json.loads(received.split(b"event: lagged\ndata: ")[1].split(b"\n\n")[0].replace(b"\r\n", b"\n").split(b"\n")[0])
        assert 0 < lagged["dropped"] <= count - WAITING
        slow.close()


async def test_the_feed_goes_on_after_nats_was_restarted(api: Api, nats_server: Nats) -> None:
    """While NATS is away readiness says so and changes are a 503; then everything goes on, on the same stream."""
    async with api.client() as client, _following(client) as events:
        nats_server.kill()
        end = time.monotonic() + 10
        while (ready := await client.get("/health/ready")).status_code == 200:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert list(ready.json()["down"]) == ["nats"]
        for answer in (
            await client.get("/api/v1/schedules"),
            await client.get("/api/v1/runners"),
            await client.post("/api/v1/runs", json={"engine": "noop"}),
            await client.post("/api/v1/runs?wait=true", json={"engine": "noop"}),
        ):
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert answer.headers["retry-after"]
            assert "NATS at 127.0.0.1" in answer.json()["detail"]
        assert (await client.get("/api/v1/results")).status_code == 200
        nats_server.start()
        end = time.monotonic() + 20
        while (await client.get("/health/ready")).status_code != 200:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert (await client.get("/api/v1/schedules")).status_code == 200
        tick = _tick()
        bus = await nats.connect(nats_server.url)
        await _publish(bus, tick)
        assert await _next(events) == ("tick", json.loads(tick.to_json()))
        await bus.close()


async def test_a_silent_nats_is_an_outage(api: Api, nats_server: Nats) -> None:
    """A server that holds the line and says nothing is a 503 within seconds, not a request that hangs."""
    async with api.client() as client:
        nats_server.process.send_signal(signal.SIGSTOP)
        try:
            answer = await client.get("/api/v1/schedules")
        finally:
            nats_server.process.send_signal(signal.SIGCONT)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        end = time.monotonic() + 20
        while (await client.get("/api/v1/schedules")).status_code != 200:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


async def test_too_many_clients_are_refused(api: Api) -> None:
    """The number of streams is bounded; a place is free again when a client goes."""
    limits = httpx.Limits(max_connections=CLIENTS + 10)
    async with api.client(limits=limits) as client:
        streams = [client.stream("GET", "/api/v1/events") for _ in range(CLIENTS)]
        for stream in streams:
            await stream.__aenter__()
        refused = await client.get("/api/v1/events")
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        await streams[0].__aexit__(None, None, None)
        await _live_clients(client, CLIENTS - 1)
        async with _following(client):
            pass
        for stream in streams[1:]:
            await stream.__aexit__(None, None, None)


async def test_a_listener_does_not_hold_up_the_end(api: Api) -> None:
    """Told to stop, the API ends its streams at once instead of waiting for clients that never leave."""
    async with api.client() as client, _following(client) as events:
        before = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        assert [event async for event in events] == []
        await asyncio.to_thread(api.process.wait, 10)
        assert time.monotonic() - before < 9, "uvicorn would have waited for ten seconds"
        assert api.process.returncode in {0, -signal.SIGTERM}


async def test_a_run_is_published_as_a_manual_tick(api: Api, bus: Client) -> None:
    """The tick carries what the schedule says, is due now, and is on the subject that the answer names."""
    async with api.client() as client:
        spec = {"engine": "noop", "options": {"seconds": 1}, "timing": {"kind": "interval", "every_s": 60}, "start_within_s": 100}
        await client.put("/api/v1/schedules/hourly", json={**spec, "enabled": False})
        answer = await client.post("/api/v1/runs", json={"schedule": "hourly"})
        ad_hoc = await client.post("/api/v1/runs", json={"engine": "noop", "site": "office", "options": {"seconds": 2}})
    assert answer.status_code == ad_hoc.status_code == 202
    run = answer.json()
    assert answer.headers["location"] == f"/api/v1/results/{run['run_id']}"
    assert run["subject"] == f"refresher.tick.home.hourly.run.{UUID(run['run_id']).hex}"
    tick = Tick.model_validate_json((await bus.jetstream().get_last_msg(subjects.TICKS, run["subject"])).data or b"")
    assert (str(tick.run_id), tick.schedule, tick.site, tick.engine) == (run["run_id"], "hourly", "home", "noop")
    assert (tick.trigger, tick.options, tick.expires_at - tick.due_at) == ("manual", {"seconds": 1}, timedelta(seconds=100))
    assert tick.due_at == datetime.fromisoformat(run["due_at"])
    assert abs(datetime.now(UTC) - tick.due_at) < timedelta(seconds=20)
    run = ad_hoc.json()
    tick = Tick.model_validate_json((await bus.jetstream().get_last_msg(subjects.TICKS, run["subject"])).data or b"")
    assert (tick.schedule, tick.site, tick.options, tick.expires_at - tick.due_at) == (None, "office", {"seconds": 2}, timedelta(hours=1))


async def test_a_run_for_any_line_is_one_tick_that_says_so(api: Api, bus: Client) -> None:
    """Of a schedule, whatever it is, or of an engine; a schedule that could not be kept is refused with the field and the reason."""
    async with api.client() as client:
        spec = {"engine": "noop", "line": "any", "timing": {"kind": "manual"}}
        assert (await client.put("/api/v1/schedules/either", json=spec)).status_code == 201
        refused = await client.put("/api/v1/schedules/either", json={**spec, "overlap": "skip"})
        answers = [await client.post("/api/v1/runs", json=body) for body in ({"schedule": "either"}, {"engine": "noop", "line": "any"})]
    assert (refused.status_code, "overlap must be queue_all, not skip" in refused.text) == (422, True)
    for answer in answers:
        tick = Tick.model_validate_json((await bus.jetstream().get_last_msg(subjects.TICKS, answer.json()["subject"])).data or b"")
        assert (tick.line, tick.overlap) == ("any", "queue_all")


async def test_a_run_needs_one_site(api: Api) -> None:
    """A schedule with several sites needs one of them named; an unknown schedule is a 404; a body that is neither is a 422."""
    async with api.client() as client:
        spec = {"timing": {"kind": "interval", "every_s": 60}, "sites": ["home", "office"]}
        await client.put("/api/v1/schedules/both", json=spec)
        answer = await client.post("/api/v1/runs", json={"schedule": "both"})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "site"
        assert "home, office" in answer.json()["errors"][0]["reason"]
        assert (await client.post("/api/v1/runs", json={"schedule": "both", "site": "moon"})).status_code == 422
        assert (await client.post("/api/v1/runs", json={"schedule": "both", "site": "office"})).json()["site"] == "office"
        assert (await client.post("/api/v1/runs", json={"schedule": "absent"})).status_code == 404
        for body in ({}, {"schedule": "both", "engine": "noop"}, {"engine": "noop", "timeout": 1}, [], "x", {"engine": None}):
            assert (await client.post("/api/v1/runs", json=body)).status_code == 422, body


async def test_waiting_for_a_run_shows_it_to_the_end(api: Api, bus: Client, database: Connection) -> None:
    """The stream has the run, its progress and nobody else's, and ends with the row once it is stored."""
    async with (
        api.client() as client,
        client.stream("POST", "/api/v1/runs?wait=true&timeout_s=30", json={"engine": "noop"}) as answer,
    ):
        assert answer.status_code == 202
        events = _parsed(answer)
        kind, run = await _next(events)
        assert kind == "run"
        assert answer.headers["location"] == f"/api/v1/results/{run['run_id']}"
        progress = Progress(run_id=UUID(run["run_id"]), site="home", engine="noop", at=datetime.now(UTC), phase="latency")
        await _publish(bus, Progress(**{**progress.model_dump(), "run_id": uuid4()}))
        await _publish(bus, progress)
        assert await _next(events) == ("progress", json.loads(progress.to_json()))
        tick = Tick.model_validate_json((await bus.jetstream().get_last_msg(subjects.TICKS, run["subject"])).data or b"")
        await _publish(bus, _result(tick))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting := asyncio.ensure_future(anext(events))), 0.3)  # not recorded yet
        await insert(database, row(tick.due_at, run_id=tick.run_id, engine="noop", schedule=None, log="the end"))
        stored_at = time.monotonic()
        kind, result = await asyncio.wait_for(waiting, 5)
        assert (kind, result["run_id"], result["log"]) == ("result", run["run_id"], "the end")
        assert time.monotonic() - stored_at < 1.9, "it did not wait for the next of its looks, two seconds apart"
        assert [event async for event in events] == []


async def test_waiting_ends_without_the_feed_too(api: Api, database: Connection) -> None:
    """A row is found even if its result did not pass here; without one the stream ends with `timeout`."""
    async with api.client() as client:
        async with client.stream("POST", "/api/v1/runs?wait=true&timeout_s=30", json={"engine": "noop"}) as answer:
            events = _parsed(answer)
            _, run = await _next(events)
            await insert(database, row(datetime.fromisoformat(run["due_at"]), run_id=UUID(run["run_id"])))
            assert (await _next(events))[0] == "result"
        async with client.stream("POST", "/api/v1/runs?wait=true&timeout_s=1", json={"engine": "noop"}) as answer:
            seen = [kind async for kind, _ in _parsed(answer)]
    assert seen == ["run", "timeout"]


async def test_runners_are_listed(api: Api, bus: Client) -> None:
    """What a runner says of itself is in the list; rubbish in the bucket is not."""
    bucket = await bus.jetstream().key_value(subjects.RUNNERS)
    now = datetime.now(UTC).isoformat()
    runner = {"id": "attic-1", "site": "home", "engines": ["noop"], "version": "0.1.0", "host": "attic", "started_at": now, "seen_at": now}
    await bucket.put("home.attic-1", json.dumps(runner).encode())
    await bucket.put("home.rubbish", b"{}")
    async with api.client() as client:
        (item,) = (await client.get("/api/v1/runners")).json()["items"]
    assert (item["id"], item["engines"], item["run_id"]) == ("attic-1", ["noop"], None)
