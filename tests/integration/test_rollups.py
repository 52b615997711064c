"""Results added up by hour and day: a summary says the same with them as without."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.api.database import Database
from services.api.parameters import Origin
from services.api.summaries import METRICS, summary
from services.api.summary import _edges
from services.recorder import store
from services.recorder.months import drop_before
from services.recorder.rollups import add_up
from shared.database import Connection
from shared.events import Failure, Measurement, Result, Status
from shared.migrate import migrate
from shared.settings import DatabaseSettings
from tests.integration.conftest import Bus, Start, until
from tests.integration.rows import insert, row

T0 = datetime(2026, 3, 27, tzinfo=UTC)
"""Two days later the clocks of Berlin go forward."""
LATER = datetime(2027, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MARK_ALL = """INSERT INTO stale_rollups
  SELECT DISTINCT hours, date_bin(hours * interval '1 hour', due_at, '2000-01-01Z') FROM results, (VALUES (1), (24)) AS size (hours)
ON CONFLICT DO NOTHING"""


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Database]:
    """Give the API's side of the database."""
    opened = Database(DatabaseSettings(database_url=database_url))
    async with opened.opened():
        yield opened


async def stale(database: Connection) -> int:
    """Return how many hours and days are still to be added up."""
    return int(await database.fetchval("SELECT count(*) FROM stale_rollups"))


async def until_somebody_waits(database: Connection) -> None:
    """Wait until a statement of some connection waits for a lock."""

    async def waits() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await until(waits)


QUESTIONS = [
    (since, since + length, size, zone, origin)
    for since, length, size, zone in (
        (T0, 4 * DAY, "hour", "UTC"),
        (T0, 4 * DAY, "day", "UTC"),
        (T0, 4 * DAY, "day", "Europe/Berlin"),
        (T0, 4 * DAY, "none", "UTC"),
        (T0 + timedelta(minutes=25), 3 * DAY, "day", "UTC"),
        (T0 + timedelta(hours=5, minutes=25), timedelta(minutes=20), "none", "UTC"),
        (T0 + timedelta(hours=5, seconds=1), 2 * DAY, "hour", "Asia/Kathmandu"),
        (T0 - 20 * DAY, 40 * DAY, "week", "America/New_York"),
        (T0 - 20 * DAY, 40 * DAY, "month", "Australia/Lord_Howe"),
    )
    for origin in (
        Origin(),
        Origin(site="home"),
        Origin(schedule="b"),
        Origin(engine="http"),
        Origin(site="office", schedule="a", engine="noop"),
    )
]


async def answers(api: Database, questions: Iterable[Any] = QUESTIONS) -> list[Any]:
    """Return what the summaries say."""
    return [
        json.loads(f"[{await summary(api, origin, list(_edges(since, end, size, ZoneInfo(zone))))}]")
        for since, end, size, zone, origin in questions
    ]


def assert_same(found: list[Any], exact: list[Any], percentiles: float = 0.01) -> None:
    """Insist that two say the same: percentiles but for so much, all else but for the order in which numbers were added."""
    assert len(found) == len(exact)
    for got, expected in zip(found, exact, strict=True):
        for bucket, other in zip(got, expected, strict=True):
            assert (bucket["from"], bucket["to"], bucket["counts"]) == (other["from"], other["to"], other["counts"])
            for metric, figures in bucket["metrics"].items():
                if figures is None or other["metrics"][metric] is None:
                    assert figures == other["metrics"][metric]
                    continue
                for name, value in figures.items():
                    within = percentiles if name in {"p50", "p95"} else 1e-12
                    assert value == pytest.approx(other["metrics"][metric][name], rel=within, abs=0), (bucket, other, metric, name)


def many(number: int, seed: int) -> list[dict[str, Any]]:
    """Return rows of four days, of every kind."""
    chance = random.Random(seed)
    rows = []
    for _ in range(number):
        status = chance.choice(("succeeded", "succeeded", "succeeded", "failed", "skipped", "missed"))
        rates = {
            "download_bps": chance.lognormvariate(17, 2),
            "upload_bps": chance.choice((None, chance.uniform(1e6, 2e6))),
            "latency_s": chance.uniform(0.001, 0.3),
            "jitter_s": chance.choice((0.0, chance.expovariate(1000))),
            "packet_loss": chance.choice((0.0, 0.0, chance.random())),
            "responsiveness_rpm": chance.choice((None, 1e-30, 1e300, 900.0)),
        }
        rows.append(
            row(
                T0 + chance.random() * 4 * DAY,
                status=status,
                site=chance.choice(("home", "office")),
                schedule=chance.choice(("a", "b", None)),
                engine=chance.choice(("http", "noop")),
                started_at=None if status == "missed" else T0,
                **(rates if status == "succeeded" else {}),
            )
        )
    return rows


async def test_a_summary_says_the_same_with_rollups_as_without(api: Database, database: Connection) -> None:
    """For every size, zone, filter and odd period; exact where an hour or a day is a bucket, else within 1 % in percentiles."""
    await insert(database, *many(3000, 1))
    exact = await answers(api)
    assert sum(sum(bucket["counts"].values()) for bucket in exact[0]) == 3000
    assert await add_up(database, LATER) == 100
    assert await stale(database) == 0
    assert_same(await answers(api), exact)
    for number, (_, _, size, zone, origin) in enumerate(QUESTIONS):
        if zone == "UTC" and size == "hour" and origin in (Origin(), Origin(site="office", schedule="a", engine="noop")):
            assert_same(await answers(api, [QUESTIONS[number]]), [exact[number]], percentiles=1e-12)
    # they are what is read: without the rows, nothing of what whole hours say is lost
    await database.execute("ALTER TABLE results DISABLE TRIGGER ALL; DELETE FROM results")
    assert_same((await answers(api))[:20], exact[:20])


async def test_what_changes_is_seen_at_once(api: Database, database: Connection) -> None:
    """A result that takes the place of a guess, one that comes late, one that is deleted: before and after it is added up."""
    guessed = {**row(T0 + HOUR, status="missed"), "started_at": None}
    await insert(database, guessed, row(T0 + 2 * HOUR))
    await add_up(database, LATER)
    fields = ("run_id", "due_at", "site", "schedule", "trigger", "engine", "finished_at")
    measured = Result(
        **{name: guessed[name] for name in fields}, started_at=T0, status=Status.SUCCEEDED, measurement=Measurement(latency_s=0.25)
    )
    assert await store.insert(database, [measured]) == 1
    await insert(database, row(T0 + 2 * HOUR, latency_s=0.5))
    await database.execute("DELETE FROM results WHERE latency_s = 0.012")
    for _ in range(2):
        day = (await answers(api, [(T0, T0 + DAY, "none", "UTC", Origin())]))[0][0]
        assert day["counts"] == {"succeeded": 2, "failed": 0, "skipped": 0, "missed": 0}
        assert (day["metrics"]["latency_s"]["min"], day["metrics"]["latency_s"]["max"]) == (0.25, 0.5)
        await add_up(database, LATER)
    assert await stale(database) == 0


async def test_a_row_that_is_moved_leaves_its_hour(api: Database, database: Connection) -> None:
    """Only whoever owns the table can move one: it is in one of the two hours, before and after they are added up anew."""
    await insert(database, row(T0), row(T0 + 5 * HOUR))
    await add_up(database, LATER)
    await database.execute("UPDATE results SET due_at = $1 WHERE due_at = $2", T0 + 2 * HOUR, T0)
    assert await stale(database) == 3  # both hours, and the day
    for _ in range(2):
        hours = (await answers(api, [(T0, T0 + 6 * HOUR, "hour", "UTC", Origin())]))[0]
        assert [bucket["counts"]["succeeded"] for bucket in hours] == [0, 0, 1, 0, 0, 1]
        await add_up(database, LATER)


async def test_an_hour_with_one_result_takes_little_room(api: Database, database: Connection) -> None:
    """Where nothing was measured twice the values alone are kept, and all is said of them; three zeros are not one."""
    alone = row(T0, latency_s=0.5, download_bps=1e300, packet_loss=0.0)
    await insert(database, row(T0 + DAY, latency_s=0.25), row(T0 + DAY, status="failed", latency_s=None))
    zero = {"download_bps": None, "upload_bps": None, "latency_s": None, "jitter_s": 0.0}
    await insert(database, alone, *(row(T0 + HOUR, **zero) for _ in range(3)))
    questions = [(T0, T0 + 2 * DAY, size, "UTC", Origin()) for size in ("hour", "day", "none")]
    exact = await answers(api, questions)
    await add_up(database, LATER)
    assert_same(await answers(api, questions), exact, percentiles=0.01)
    kept = await database.fetch(
        "SELECT since, summary IS NULL AS small FROM result_rollups WHERE hours = 1 AND site IS NULL ORDER BY since"
    )
    assert [each["small"] for each in kept] == [False, False, True]  # the first has a number that no sum can have
    size = "pg_column_size(result_rollups.*)"
    assert await database.fetchval(f"SELECT max({size}) FROM result_rollups WHERE summary IS NULL") < 400


async def test_several_recorders_at_once(api: Database, database: Connection, database_url: str) -> None:
    """They store the same in different orders, guesses and what takes their place, while others add up: nothing is lost, nothing twice."""
    await database.execute("SELECT results_partition('2026-03-01')")
    chance = random.Random(3)
    fields = ("site", "schedule", "trigger", "engine", "finished_at")
    results = []
    for number in range(400):
        known = row(T0 + number * timedelta(minutes=9), schedule=None, trigger="manual")
        base = {"run_id": uuid4(), "due_at": known["due_at"], **{name: known[name] for name in fields}}
        guess = Result(**base, status=Status.MISSED, failure=Failure(kind="missed", message="nobody took it"))
        real = Result(**base, status=Status.SUCCEEDED, started_at=T0, measurement=Measurement(latency_s=chance.random() + 0.01))
        results += [guess, real] if number % 3 else [real]
    done = asyncio.Event()

    async def record(order: list[Result]) -> None:
        connection = await asyncpg.connect(database_url)
        for start in range(0, len(order), 40):
            while True:  # as a recorder does: of two that wait for each other the server ends one
                with suppress(asyncpg.DeadlockDetectedError):
                    await store.insert(connection, order[start : start + 40])
                    break
        await connection.close()

    async def fold() -> None:
        connection = await asyncpg.connect(database_url)
        while not done.is_set():
            await add_up(connection, LATER)
            await asyncio.sleep(0)
        await connection.close()

    folding = [asyncio.create_task(fold()) for _ in range(2)]
    await asyncio.gather(*(record(chance.sample(results, len(results))) for _ in range(3)))
    done.set()
    await asyncio.gather(*folding)
    await add_up(database, LATER)
    assert await stale(database) == 0
    question = [(T0, T0 + 3 * DAY, "hour", "UTC", Origin())]
    found = await answers(api, question)
    await database.execute(MARK_ALL)
    assert_same(found, await answers(api, question), percentiles=1e-12)
    assert sum(bucket["counts"]["succeeded"] for bucket in found[0]) == 400


async def test_an_hour_in_which_somebody_writes_is_left_alone(database: Connection, database_url: str) -> None:
    """What is not committed is not seen, so that hour stays marked until it is; others are added up."""
    await insert(database, row(T0), row(T0 + 3 * HOUR))
    other: Any = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await insert(other, row(T0 + timedelta(minutes=1)))
            assert await add_up(database, LATER) == 1
            assert await stale(database) == 2
        assert await add_up(database, LATER) == 2
        assert await database.fetchval("SELECT statuses[1] FROM result_rollups WHERE hours = 1 AND since = $1 AND site IS NULL", T0) == 2
    finally:
        await other.close()


async def test_a_writer_waits_for_an_hour_that_is_added_up(database: Connection, database_url: str) -> None:
    """Its row was not seen, so it marks the hour anew, however the two fall together."""
    await insert(database, row(T0))
    other: Any = await asyncpg.connect(database_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        assert await other.fetchval("SELECT results_fold($1, NULL)", LATER) == 2
        writing = asyncio.create_task(insert(database, row(T0 + timedelta(minutes=1))))
        await until_somebody_waits(other)
        await transaction.commit()
        await writing
        assert await stale(database) == 2
    finally:
        await other.close()


async def test_what_is_not_over_is_not_added_up(database: Connection) -> None:
    """An hour and a day that end later than asked for stay marked."""
    await insert(database, row(T0), row(T0 + HOUR))
    assert await add_up(database, T0 + HOUR) == 1
    assert await stale(database) == 2


async def test_a_month_that_is_dropped_stays_in_the_rollups(api: Database, database: Connection) -> None:
    """Added up or not when it went; what comes later for it changes nothing, and buckets that cut an hour have it where it begins."""
    await insert(database, *many(500, 4), row(T0 + 40 * DAY))
    questions = [(T0, T0 + 4 * DAY, size, zone, Origin(site="home")) for size, zone in (("day", "UTC"), ("hour", "UTC"), ("none", "UTC"))]
    exact = await answers(api, questions)
    assert await drop_before(database, T0 + 30 * DAY) == 1
    assert_same(await answers(api, questions), exact)
    await insert(database, row(T0 + HOUR))
    assert await add_up(database, LATER) == 2
    assert_same(await answers(api, questions), exact)
    (kathmandu,) = await answers(api, [(T0, T0 + 4 * DAY, "hour", "Asia/Kathmandu", Origin(site="home"))])
    (hours,) = await answers(api, [(T0, T0 + 4 * DAY, "hour", "UTC", Origin(site="home"))])
    assert [bucket["counts"] for bucket in kathmandu if bucket["counts"]["succeeded"]] == [
        bucket["counts"] for bucket in hours if bucket["counts"]["succeeded"]
    ]


async def test_what_is_written_while_a_month_is_dropped_is_added_up(database: Connection, database_url: str) -> None:
    """The month waits for the writer, whose row is in the rollups before it goes."""
    await insert(database, row(T0 + HOUR), row(T0 + 40 * DAY))
    other: Any = await asyncpg.connect(database_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await insert(other, row(T0))
        dropping = asyncio.create_task(drop_before(database, T0 + 30 * DAY))
        await until_somebody_waits(other)
        await transaction.commit()
        assert await dropping == 1
    finally:
        await other.close()
    found = await database.fetch("SELECT since FROM result_rollups WHERE hours = 1 AND site IS NULL AND since < $1 ORDER BY 1", T0 + DAY)
    assert [each["since"] for each in found] == [T0, T0 + HOUR]


async def test_a_database_with_results_gets_its_rollups(api: Database, database: Connection) -> None:
    """The migration marks what is there, so that it is added up by the next recorder, and read from the rows until then."""
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await migrate(database, up_to="0006_retention")
    await insert(database, *many(300, 5))
    await migrate(database)
    before = await answers(api)
    assert sum(sum(bucket["counts"].values()) for bucket in before[0]) == 300
    assert await add_up(database, LATER) > 90
    assert_same(await answers(api), before)


async def test_a_recorder_adds_up(bus: Bus, database: Connection, database_url: str, start: Start) -> None:
    """What is over, without being asked."""
    await insert(database, row(T0))
    start("recorder", database_url)

    async def added_up() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM result_rollups")) and await stale(database) == 0

    await until(added_up)


values = st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(1e-3, 1e10))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=400))
async def test_a_bucket_stands_for_its_values(database: Connection, found: list[float]) -> None:
    """Within 1 %, zero for itself, and in the order of the values."""
    stood: list[float] = await database.fetchval(
        """SELECT array_agg(result_bin_value(result_bin(1 + n % 8, value)) ORDER BY n)
        FROM unnest($1::float8[]) WITH ORDINALITY AS each (value, n)""",
        found,
    )
    assert stood == pytest.approx(found, rel=0.01 + 1e-12, abs=0)
    ordered = await database.fetchval(
        "SELECT array_agg(value ORDER BY result_bin(3, value), value) FROM unnest($1::float8[]) AS value", found
    )
    assert ordered == sorted(found)


async def test_no_number_is_too_large_or_too_small(api: Database, database: Connection) -> None:
    """The least and the greatest that a row can have: they are added up, and put together with others."""
    await insert(database, *(row(T0 + n * HOUR, download_bps=rate) for n, rate in enumerate((5e-324, 1.7976931348623157e308, 1.5e308))))
    for _ in range(2):
        (buckets,) = await answers(api, [(T0 + timedelta(seconds=-1), T0 + DAY - HOUR, "none", "UTC", Origin())])
        assert (buckets[0]["metrics"]["download_bps"]["min"], buckets[0]["metrics"]["download_bps"]["max"]) == (
            5e-324,
            1.7976931348623157e308,
        )
        assert await add_up(database, LATER) in {0, 4}


async def test_both_name_the_metrics_in_the_same_order(database: Connection) -> None:
    """The arrays of a rollup are read by place."""
    assert tuple(await database.fetchval("SELECT result_metrics()")) == METRICS
