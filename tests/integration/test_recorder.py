"""The recorder as a process, between a real NATS server and a real Postgres."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from services.recorder import store
from shared import subjects
from shared.dead import LONGEST
from shared.events import Client, Failure, Measurement, Result, Server, Status, run_id_of
from shared.provision import MAX_DELIVERIES, PIN_GROUP
from shared.publish import publish_until_stored
from shared.pull import Pull
from tests.integration.conftest import Bus, Start, until
from tests.servers import Postgres

Database = Any
"""An asyncpg connection."""


def a_result(**fields: Any) -> Result:
    """Return a succeeded result."""
    now = datetime.now(UTC)
    given = {
        "run_id": uuid4(),
        "site": "home",
        "schedule": "hourly",
        "trigger": "manual",
        "engine": "speedtest",
        "due_at": now,
        "status": Status.SUCCEEDED,
        "runner": "runner-1",
        "started_at": now,
        "finished_at": now + timedelta(seconds=20),
        "measurement": Measurement(download_bps=93.4e6, upload_bps=41e6, latency_s=0.0123),
    }
    return Result(**{**given, **fields})


async def publish(bus: Bus, *payloads: Result | bytes) -> None:
    """Put results, or anything at all, on the stream."""
    for payload in payloads:
        data = payload.to_json() if isinstance(payload, Result) else payload
        await publish_until_stored(bus.js, subjects.RESULTS, "refresher.result.home.hourly", data, str(uuid4()))


def rows(database: Database, number: int) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the table holds so many rows."""

    async def there() -> bool:
        with contextlib.suppress(asyncpg.UndefinedTableError):  # the recorder has yet to migrate
            return bool(await database.fetchval("SELECT count(*) FROM results") == number)
        return False

    return there


async def settled(bus: Bus) -> bool:
    """Tell whether everything on the stream was delivered and acknowledged."""
    consumer = await bus.js.consumer_info(subjects.RESULTS, subjects.RECORDER)
    return not consumer.num_pending and not consumer.num_ack_pending


async def test_every_field_of_a_result_is_stored(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """What the runner said is what the row says, to the last digit."""
    start("recorder", database_url)
    server = Server(
        id="1",
        name="Bern",
        sponsor="Net",
        url="http://s/upload.php",
        host="s:8080",
        country="Switzerland",
        country_code="CH",
        latitude=46.9,
        longitude=7.4,
        distance_m=1234.5,
    )
    client = Client(isp="ISP", address="192.0.2.1", country_code="CH", latitude=47.0, longitude=7.5)
    measurement = Measurement(
        download_bps=93.4e6 / 3,
        upload_bps=41e6,
        latency_s=0.0123,
        jitter_s=0.0,
        packet_loss=0.25,
        download_latency_s=0.05,
        upload_latency_s=0.06,
        responsiveness_rpm=900.5,
        bufferbloat_grade="A+",
        download_spread=0.0,
        upload_spread=0.01,
        limited_by="loss",
        confidence="underestimates",
        download_bytes=2**40,
        upload_bytes=0,
        server=server,
        client=client,
        details={"https": True, "nested": {"é": [1, None]}},
    )
    result = a_result(measurement=measurement, attempt=2, engine_version="speedtest-cli 2.1.3", log="the end\n")
    await publish(bus, result)
    await until(rows(database, 1))
    row = dict(await database.fetchrow("SELECT * FROM results"))
    for name in ("run_id", "due_at", "site", "schedule", "trigger", "engine", "engine_version", "status", "runner", "attempt", "log"):
        assert row[name] == getattr(result, name), name
    for name in {*Measurement.model_fields} - {"server", "client", "engine_version", "details", "log"}:
        assert row[name] == getattr(measurement, name), name
    for name in Server.model_fields:
        assert row[f"server_{name}"] == getattr(server, name), name
    for name in Client.model_fields:
        assert row[f"client_{name}"] == getattr(client, name), name
    assert json.loads(row["details"]) == measurement.details
    assert row["failure_kind"] is None
    assert result.finished_at <= row["recorded_at"] + timedelta(seconds=20)


async def test_a_failed_result_has_its_reason_and_no_numbers(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """Absent is NULL: never 0, never -1."""
    start("recorder", database_url)
    await publish(bus, a_result(status=Status.FAILED, measurement=None, failure=Failure(kind="timeout", message="it hung")))
    await until(rows(database, 1))
    row = await database.fetchrow("SELECT * FROM results")
    assert (row["status"], row["failure_kind"], row["failure_message"]) == ("failed", "timeout", "it hung")
    assert (row["download_bps"], row["upload_bps"], row["latency_s"], row["download_bytes"]) == (None, None, None, None)


async def test_a_result_delivered_twice_is_stored_once(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """NATS promises at least once; the primary key makes it once."""
    recorder = start("recorder", database_url)
    result = a_result()
    await publish(bus, result, result, result)
    await until(lambda: settled(bus))
    assert await database.fetchval("SELECT count(*) FROM results") == 1
    assert recorder.metric('refresher_results_total{outcome="duplicate"}') == 2


def _with(**changes: Any) -> bytes:
    return json.dumps({**json.loads(a_result().to_json()), **changes}).encode()


BAD = {
    "not JSON": b"hello",
    "as large as the server takes": b"x" * 1_000_000,
    "no result": b"{}",
    "NUL in text": _with(log="a\x00b"),
    "NUL in details": _with(measurement={"details": {"a": "\x00"}}),
    "a lone surrogate": _with(measurement={"details": {"a": "SURROGATE"}}).replace(b"SURROGATE", b"\\ud800"),
    "NaN": _with(measurement={"download_bps": float("nan")}),
    "infinity": _with(measurement={"latency_s": float("inf")}),
    "zero for a rate": _with(measurement={"download_bps": 0}),
    "-1 for a rate": _with(measurement={"upload_bps": -1}),
    "JSON 20,000 deep": _with(measurement={"details": "DEEP"}).replace(b'"DEEP"', b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "a 400-digit number": _with(measurement={"download_bytes": 10**400}),
    "a year that nobody lives in": _with(due_at="9999-12-31T00:00:00Z"),
    "a time without a zone": _with(due_at="2026-01-01T00:00:00"),
    "a site that is not the subject's": _with(site="office"),
    "the id of another run": _with(trigger="schedule"),
    "a fraction of a second besides": _with(
        trigger="schedule", due_at="2026-10-01T00:00:00.4Z", run_id=str(run_id_of("hourly", "home", datetime(2026, 10, 1, tzinfo=UTC)))
    ),
    "an id that somebody could foretell": _with(run_id=str(run_id_of("hourly", "office", datetime.now(UTC)))),
    "numbers of a failed run": _with(status="failed", failure={"kind": "x", "message": "y"}),
}


async def test_a_bad_message_is_put_aside_alone(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """Each kind of poison, all in one batch among good results: these are stored, those are kept with their reasons."""
    good = [a_result() for _ in range(len(BAD) + 1)]
    await publish(bus, good[0])
    for bad, result in zip(BAD.values(), good[1:], strict=True):
        await publish(bus, bad, result)
    recorder = start("recorder", database_url)
    await until(lambda: settled(bus))
    stored = {row["run_id"] for row in await database.fetch("SELECT run_id FROM results")}
    assert stored == {result.run_id for result in good}
    dead = await bus.messages(subjects.DEAD)
    assert sorted(message.data or b"" for message in dead) == sorted(bad[:LONGEST] for bad in BAD.values()), "each as it came"
    assert {message.headers["Refresher-Size"] for message in dead if message.headers and "Refresher-Size" in message.headers} == {"1000000"}
    for message in dead:
        assert message.headers
        assert message.headers["Refresher-Reason"]
    assert recorder.metric('refresher_results_total{outcome="dead"}') == len(BAD)


async def test_what_only_postgres_refuses_is_put_aside_alone(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """A rule that only the table knows: the batch is halved until the culprit is alone."""
    await database.execute("ALTER TABLE results ADD CHECK (engine <> 'forbidden')")
    good = [a_result() for _ in range(20)]
    await publish(bus, *good[:7], a_result(engine="forbidden"), *good[7:])
    start("recorder", database_url)
    await until(rows(database, 20))
    await until(lambda: settled(bus))
    (dead,) = await bus.messages(subjects.DEAD)
    assert dead.headers
    assert "forbidden" not in dead.headers["Refresher-Subject"]
    assert "CheckViolation" in dead.headers["Refresher-Reason"]


async def test_a_recorder_that_is_killed_loses_nothing(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """kill -9 in the middle of a backlog, several times: every result is a row, once."""
    number = 3_000
    pending = [a_result() for _ in range(number)]
    futures = [await bus.js.publish_async("refresher.result.home.hourly", result.to_json()) for result in pending]
    for future in futures:
        await future
    recorder = start("recorder", database_url, REFRESHER_RECORDER_BATCH="20")
    for _ in range(3):
        before = await database.fetchval("SELECT count(*) FROM results")

        async def more(before: int = before) -> bool:
            return bool(await database.fetchval("SELECT count(*) FROM results") > before)

        await until(more, 60)
        recorder.kill()
        recorder.start()
    await until(rows(database, number), 90)
    await until(lambda: settled(bus), 60)
    assert await database.fetchval("SELECT count(DISTINCT run_id) FROM results") == number
    assert not await bus.count(subjects.DEAD)


async def test_while_postgres_is_away_nothing_is_lost(bus: Bus, start: Start, open_directory: Path) -> None:
    """It waits, buries nothing, says in its readiness what is down, and resumes by itself."""
    server = Postgres(open_directory)
    try:
        recorder = start("recorder", server.url)
        await publish(bus, a_result())
        database = await asyncpg.connect(server.url)
        await until(rows(database, 1))
        await database.close()
        server.stop()
        await publish(bus, *(a_result() for _ in range(5)))

        async def away() -> bool:
            return recorder.metric("refresher_recorder_postgres_away") == 1

        await until(away)
        with pytest.raises(AssertionError, match="not ready"):
            recorder.wait_until_ready(1)
        server.start()
        recorder.wait_until_ready()
        database = await asyncpg.connect(server.url)
        await until(rows(database, 6), 20)
        await database.close()
        assert not await bus.count(subjects.DEAD)
        assert recorder.process.poll() is None
    finally:
        server.stop()


async def test_a_batch_that_has_to_wait_does_not_hold_up_the_next(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """A row waits for another transaction that writes the same one: what comes later is stored meanwhile."""
    start("recorder", database_url)
    waiting, later = a_result(), a_result()
    await store.insert(database, [a_result()])  # the first row of an hour holds up the others of that hour until it is committed
    other = await asyncpg.connect(database_url)
    transaction = other.transaction()
    await transaction.start()
    await store.insert(other, [waiting])
    await publish(bus, waiting)

    async def waits() -> bool:
        return bool(await database.fetchval("SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

    await until(waits)
    await publish(bus, later)
    await until(rows(database, 2))
    assert await database.fetchval("SELECT true FROM results WHERE run_id = $1", later.run_id)
    await transaction.rollback()
    await until(rows(database, 3))
    await other.close()


async def test_months_get_their_partitions(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """A result finds its month, also one of long ago, on both sides of a month's end in UTC."""
    start("recorder", database_url)
    moments = [datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), datetime(2001, 2, 3, tzinfo=UTC)]
    await publish(bus, *(a_result(due_at=moment) for moment in moments))
    await until(rows(database, 3))
    found = await database.fetch("SELECT tableoid::regclass::text AS partition FROM results ORDER BY due_at")
    assert [row["partition"] for row in found] == ["results_2001_02", "results_2025_12", "results_2026_01"]


async def test_a_tick_that_nobody_finishes_becomes_a_failed_row(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """After its last delivery the server says so; even if no recorder listens then, the row comes."""
    runner = start("runner")
    runner.stop()
    tick = await bus.tick()
    async with Pull(bus.client, bus.js, subjects.TICKS, "runner-home", batch=1, group=PIN_GROUP) as pull:
        for _ in range(MAX_DELIVERIES):
            (message,) = await pull.next()
            await message.nak()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pull.next(), 0.5)  # the server notices when somebody asks for more
    assert await bus.count(subjects.ADVISORIES) == 1
    start("recorder", database_url)
    await until(rows(database, 1))
    row = await database.fetchrow("SELECT * FROM results")
    assert (row["run_id"], row["status"], row["failure_kind"], row["attempt"]) == (
        UUID(str(tick.run_id)),
        "failed",
        "abandoned",
        MAX_DELIVERIES,
    )
    following = await bus.tick()
    runner.start()

    async def measured() -> bool:
        return bool(await database.fetchval("SELECT true FROM results WHERE run_id = $1", following.run_id))

    await until(measured, 20)


async def test_a_flood_of_bad_messages_drops_nothing(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """10,000 that nobody can read among 1,000 good ones: a thousand rows, ten thousand dead letters, each of them once."""
    good = [a_result() for _ in range(1_000)]
    garbage = [f"garbage {number}".encode() for number in range(10_000)]
    mixed = [each for number, result in enumerate(good) for each in (result.to_json(), *garbage[10 * number : 10 * number + 10])]
    futures = [await bus.js.publish_async("refresher.result.home.hourly", payload) for payload in mixed]
    for future in futures:
        await future
    recorder = start("recorder", database_url)
    await until(rows(database, 1_000), 60)
    await until(lambda: settled(bus), 60)
    assert {row["run_id"] for row in await database.fetch("SELECT run_id FROM results")} == {result.run_id for result in good}
    assert await bus.count(subjects.DEAD) == recorder.metric('refresher_results_total{outcome="dead"}') == 10_000
    subscription = await bus.js.pull_subscribe(subjects.ALL_DEAD, stream=subjects.DEAD, config=ConsumerConfig(ack_policy=AckPolicy.NONE))
    found: list[bytes] = []
    while len(found) < len(garbage):
        found += [message.data for message in await subscription.fetch(500, timeout=5)]
    assert set(found) == set(garbage)


async def test_large_garbage_does_not_hold_up_the_rest(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """A hundred megabytes are more than the server lets be on its way to one client, and more than is held here at once."""
    recorder = start("recorder", database_url)
    await publish(bus, *(b"x" * 1_000_000 for _ in range(100)), a_result())
    await until(rows(database, 1))
    await until(lambda: settled(bus))
    assert await bus.count(subjects.DEAD) == 100
    assert "nats disconnected" not in recorder.log.read_text()


async def test_a_recorder_whose_consumer_is_deleted_goes_on(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """It ends rather than wait for ever; started again, it has the consumer back, and what is stored already stays as it is."""
    start("scheduler")
    recorder = start("recorder", database_url)
    await publish(bus, a_result())
    await until(rows(database, 1))
    await bus.js.delete_consumer(subjects.RESULTS, subjects.RECORDER)
    assert await asyncio.to_thread(recorder.process.wait, 20) == 1
    recorder.start()
    await publish(bus, a_result())
    await until(rows(database, 2))
