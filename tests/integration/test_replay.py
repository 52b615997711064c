"""Replay: an empty database filled from the stream of results, row for row as the recorder filled the first."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from nats.js.api import ConsumerConfig

from services.recorder import store
from shared import subjects
from shared.events import Client, Failure, Measurement, Result, Server, Status, run_id_of
from shared.publish import publish_until_stored
from tests.commands import Refresher
from tests.integration.conftest import Bus, Start, until
from tests.integration.test_recorder import Database, a_result, publish, settled
from tests.servers import Nats, Postgres


class Second:
    """An empty database beside the recorder's, and the command line that fills it."""

    def __init__(self, url: str, database: Database, nats_url: str) -> None:
        self.url, self.database = url, database
        self.refresher = Refresher(REFRESHER_NATS_URL=nats_url, REFRESHER_DATABASE_URL=url)

    async def replay(self, *arguments: str) -> dict[str, Any]:
        """Run the command beside whatever else goes on, and return its summary."""
        (summary,) = await asyncio.to_thread(self.refresher.json, "replay", *arguments)
        found: dict[str, Any] = summary
        return found


@pytest.fixture
async def second(postgres_server: Postgres, nats_server: Nats) -> AsyncIterator[Second]:
    """Give a database in which there is nothing yet, not even tables."""
    admin = await asyncpg.connect(postgres_server.url)
    await admin.execute("CREATE DATABASE second")
    database = await asyncpg.connect(postgres_server.database("second"))
    yield Second(postgres_server.database("second"), database, nats_server.url)
    await database.close()
    await admin.execute("DROP DATABASE second WITH (FORCE)")
    await admin.close()


async def everything(database: Database) -> list[dict[str, Any]]:
    """Return every row, all of it but when it was recorded."""
    found = await database.fetch("SELECT * FROM results ORDER BY due_at, run_id")
    return [{name: value for name, value in row.items() if name != "recorded_at"} for row in found]


def varied(number: int) -> list[Result]:
    """Return results of every kind, over more than a year."""
    made = []
    step = timedelta(hours=24 * 400 // number)
    for each in range(number):
        due_at = datetime(2024, 11, 30, 23, 59, 59, tzinfo=UTC) + each * step
        kind = each % 5
        common = {
            "due_at": due_at,
            "finished_at": due_at + timedelta(seconds=20.123456),
            "attempt": 1 + each % 3,
            "log": "é\n" * (each % 100),
        }
        scheduled = {"trigger": ("schedule", "catch_up")[each % 2], "run_id": run_id_of("hourly", "home", due_at)}
        failure = Failure(kind="timeout", message="it hung – 東京")
        if kind == 0:
            server = Server(id="1", name="Bern", sponsor="Net", host="s:8080", latitude=46.9, longitude=-0.0, distance_m=1234.5)
            numbers = {"download_bps": 93.4e6 / (each + 3), "upload_bytes": 2**63 - 1, "jitter_s": 0.0, "packet_loss": 1 / 3}
            details = {"https": True, "nested": {"é": [1, 1e300, None]}, "n": each}
            measurement = Measurement(**numbers, server=server, client=Client(isp="ISP", address="192.0.2.1"), details=details)
            made.append(a_result(**common, **scheduled, measurement=measurement, engine_version="2.1.3"))
        elif kind == 4:
            made.append(a_result(**common, schedule=("hourly", None)[each % 2]))
        else:
            status = (Status.FAILED, Status.MISSED, Status.SKIPPED)[kind - 1]
            started = {} if kind == 1 else {"started_at": None, "runner": None}
            made.append(a_result(**common, **scheduled, **started, status=status, measurement=None, failure=failure))
    return made


async def test_the_rows_are_the_same(bus: Bus, start: Start, database_url: str, database: Database, second: Second) -> None:
    """Each column of each row, whatever its kind, of a stream with poison and repetitions in it; twice does no harm."""
    results = varied(150)
    await publish(bus, *results[:70], b"poison", results[3], *results[70:])
    manual = a_result(schedule=None, due_at=datetime.now(UTC))
    await publish_until_stored(bus.js, subjects.RESULTS, subjects.result("home", None), manual.to_json(), str(uuid4()))
    start("recorder", database_url)
    await until(lambda: settled(bus))
    before = await bus.js.consumer_info(subjects.RESULTS, subjects.RECORDER)
    expected = await everything(database)
    assert len(expected) == 151
    assert {row["status"] for row in expected} == {"succeeded", "failed", "missed", "skipped"}
    assert {row["trigger"] for row in expected} == {"schedule", "catch_up", "manual"}
    reason = {"reason": "not a result: value: Invalid JSON: expected value at line 1 column 1", "first_sequence": 71, "count": 1}
    assert await second.replay() == {"read": 153, "new": 151, "already_there": 1, "refused": 1, "reasons": [reason]}
    assert await everything(second.database) == expected
    assert await second.replay() == {"read": 153, "new": 0, "already_there": 152, "refused": 1, "reasons": [reason]}
    assert await everything(second.database) == expected
    assert [each.name for each in await bus.js.consumers_info(subjects.RESULTS)] == [subjects.RECORDER], "none is left behind"
    after = await bus.js.consumer_info(subjects.RESULTS, subjects.RECORDER)
    assert (after.delivered, after.ack_floor) == (before.delivered, before.ack_floor)
    assert await bus.count(subjects.DEAD) == 1, "what was put aside once is not put aside again"


async def test_what_only_the_table_refuses_is_counted_alone(bus: Bus, second: Second) -> None:
    """A batch that is refused is halved, as the recorder does; a person is told how often, why and where."""
    await second.replay()
    await second.database.execute("ALTER TABLE results ADD CONSTRAINT strict CHECK (engine <> 'forbidden')")
    results = [a_result(engine="forbidden" if number in {7, 33} else "noop") for number in range(60)]
    await publish(bus, *results, b"garbage")
    told = await asyncio.to_thread(second.refresher, "replay")
    assert told.stdout.splitlines()[:4] == ["read\t61", "new\t58", "already there\t0", "refused\t3"]
    table = [line.split("\t") for line in told.stdout.splitlines()[4:]]
    assert [line[:2] for line in table] == [["times", "first at"], ["2", "8"], ["1", "61"]]
    assert "strict" in table[1][2]


async def test_from_and_to_are_when_it_was_published(bus: Bus, second: Second) -> None:
    """The first belongs to it, the last does not."""
    results = [a_result() for _ in range(6)]
    await publish(bus, *results)
    times = [message.time.isoformat() for message in await bus.messages(subjects.RESULTS)]  # type: ignore[attr-defined]
    assert (await second.replay("--from", times[2], "--to", times[4]))["new"] == 2
    assert {row["run_id"] for row in await everything(second.database)} == {result.run_id for result in results[2:4]}
    assert (await second.replay("--to", times[1]))["read"] == 1
    assert (await second.replay("--from", times[5]))["read"] == 1
    assert (await second.replay("--from", "0s"))["read"] == 0
    assert "not before --to" in second.refresher("replay", "--from", times[4], "--to", times[2], code=2).stderr


async def test_while_the_system_runs_it_ends_and_disturbs_nobody(
    bus: Bus, start: Start, database_url: str, database: Database, second: Second
) -> None:
    """Into the very table that the recorder fills, with more on its way all the time: each is a row once, neither waits."""
    results = varied(3_000)
    for future in [await bus.js.publish_async("refresher.result.home.hourly", result.to_json()) for result in results]:
        await future
    later: list[Result] = []
    ended = asyncio.Event()

    async def go_on() -> None:
        while not ended.is_set():
            later.append(a_result())
            await publish(bus, later[-1])

    going_on = asyncio.create_task(go_on())
    second.refresher.environment["REFRESHER_DATABASE_URL"] = database_url
    recorder = await asyncio.to_thread(start, "recorder", database_url, REFRESHER_RECORDER_BATCH="150")
    told = await asyncio.gather(*(asyncio.to_thread(second.refresher, "replay", "--json") for _ in range(2)))
    ended.set()
    await going_on
    await until(lambda: settled(bus), 30)
    for each in told:
        summary, there = json.loads(each.stdout), int(re.sub(r"\D", "", each.stderr.splitlines()[0]))
        assert 3_000 <= summary["read"] <= there, "what came after the beginning is left to the recorder"
        assert summary["new"] + summary["already_there"] == summary["read"]
    assert {row["run_id"] for row in await everything(database)} == {result.run_id for result in (*results, *later)}
    assert len(await everything(database)) == 3_000 + len(later)
    stored = sum(recorder.metric(f'refresher_results_total{{outcome="{outcome}"}}') for outcome in ("stored", "duplicate"))
    assert stored == 3_000 + len(later)
    assert "waiting for postgres" not in recorder.log.read_text(), "a deadlock would be told like this"


async def test_two_that_write_the_same_do_not_wait_for_each_other(database_url: str, database: Database) -> None:
    """In whatever order each got the results: two statements that hold what the other wants would end in a deadlock."""
    other = await asyncpg.connect(database_url)
    for round_ in range(10):
        results = [a_result(due_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=round_, seconds=number)) for number in range(1_000)]
        new = await asyncio.gather(store.insert(database, results), store.insert(other, results[::-1]))
        assert sum(new) == 1_000
    await other.close()


async def test_how_far_it_is_is_told(bus: Bus, second: Second) -> None:
    """Every ten thousand messages, where nobody sees a bar; memory and time stay small."""
    for future in [await bus.js.publish_async("refresher.result.home.hourly", b"garbage") for _ in range(10_050)]:
        await future
    told = await asyncio.to_thread(second.refresher, "replay")
    assert told.stderr.splitlines() == ["Reading 10,050 messages.", "Read 10,000 of 10,050."]
    assert "refused\t10,050" in told.stdout


async def test_messages_of_any_size_pass(bus: Bus, second: Second) -> None:
    """More megabytes than a subscription holds at once."""
    await publish(bus, *(b"x" * 1_000_000 for _ in range(150)), a_result())
    summary = await second.replay()
    assert (summary["new"], summary["refused"]) == (1, 150)


async def test_what_is_in_the_way_is_told(bus: Bus, second: Second) -> None:
    """A database or a server that does not answer, a stream that is not there, a newer schema: one sentence each."""
    nowhere = Refresher(**{**second.refresher.environment, "REFRESHER_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing"})
    assert "PostgreSQL at 127.0.0.1:9/nothing does not answer" in nowhere("replay", code=1).stderr
    nowhere = Refresher(**{**second.refresher.environment, "REFRESHER_NATS_URL": "nats://127.0.0.1:9"})
    assert "127.0.0.1:9 does not answer" in nowhere("replay", code=1).stderr
    await second.replay()
    await bus.js.delete_stream(subjects.RESULTS)
    assert "no results" in second.refresher("replay", code=1).stderr
    await second.database.execute("INSERT INTO refresher_migrations (name, sha256) VALUES ('9999_later', '')")
    assert "run the newer version" in second.refresher("replay", code=1).stderr


async def test_a_passing_consumer_leaves_no_metric_behind(bus: Bus, start: Start, database_url: str) -> None:
    """The recorder shows what waits for consumers that stay; each replay would leave a series that never changes again."""
    await bus.js.add_consumer(subjects.RESULTS, ConsumerConfig(name="replay-1", inactive_threshold=60))
    recorder = start("recorder", database_url)
    await publish(bus, b"garbage")

    async def shown() -> bool:
        return recorder.metric('refresher_stream_messages{stream="KV_refresher-runners"}') == 0 and bool(
            [line for line in await _metrics(recorder.url) if 'refresher_consumer_pending{consumer="recorder",stream="RESULTS"}' in line]
        )

    await until(shown)
    assert not [line for line in await _metrics(recorder.url) if "replay-1" in line]


async def _metrics(url: str) -> list[str]:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/metrics")).text.splitlines()
