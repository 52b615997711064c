"""Months of results: the next one is there before its first row, and those that are too old go, with what the ledger held of them."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from pydantic import ValidationError

from services.recorder.months import drop_before, make_ahead
from services.recorder.settings import RecorderSettings
from services.recorder.settler import alone
from shared.audit import audit
from shared.history import spec, versions
from tests.integration.conftest import Bus, Start, interval, until
from tests.integration.rows import insert, row
from tests.integration.test_recorder import Database, a_result, publish, rows
from tests.servers import Postgres

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


async def months(database: Database) -> list[str]:
    """Return the names of the partitions, the oldest first."""
    found = await database.fetch("SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid ORDER BY 1")
    return [each["relname"] for each in found if each["relname"].count("_") == 2 and not each["relname"].endswith("key")]


@pytest.mark.parametrize(("today", "next_month"), [("2027-01-31", "results_2027_02"), ("2027-12-01", "results_2028_01")])
async def test_the_next_month_is_made_ahead(database: Database, today: str, next_month: str) -> None:
    """From the first day of a month to its last, its partition and the next are there, however often they are asked for."""
    for _ in range(2):
        await make_ahead(database, date.fromisoformat(today))
    assert await months(database) == [f"results_{today[:7].replace('-', '_')}", next_month]


async def test_a_month_goes_when_all_of_it_is_too_old(database: Database) -> None:
    """A row of the moment itself, and all of its month, stay; the last one of the month before goes."""
    first = datetime(2025, 3, 1, tzinfo=UTC)
    old = [row(first - 40 * DAY), row(first - timedelta(microseconds=1))]
    kept = [row(first), row(first + 20 * DAY), row(first + 31 * DAY)]
    await insert(database, *old, *kept)
    assert await drop_before(database, first + 20 * DAY) == 2
    assert {each["run_id"] for each in await database.fetch("SELECT run_id FROM results")} == {each["run_id"] for each in kept}
    assert await months(database) == ["results_2025_03", "results_2025_04"]
    assert await drop_before(database, first + 20 * DAY) == 0


async def test_the_ledger_begins_after_what_was_dropped(database: Database) -> None:
    """An audit of all time finds nothing missing, although the schedule was due before; from then on it still finds what is."""
    schedule = interval("daily", 86_400, active_since=NOW - 400 * DAY)
    began_at = NOW - 400 * DAY
    await database.execute("UPDATE ledger_state SET began_at = $1, settled_until = $2", began_at, NOW)
    add = "INSERT INTO schedule_versions (number, name, revision, since, spec) VALUES ($1, 'daily', $1, $2, $3)"
    first = (NOW - 200 * DAY).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    # the second ended more than 31 days before what is kept begins, the third less
    for number, since in enumerate((began_at, NOW - 300 * DAY, first - 40 * DAY, first - 20 * DAY, NOW - 90 * DAY), 1):
        await database.execute(add, number, since, spec(schedule))
    ask = "INSERT INTO asked_runs VALUES (gen_random_uuid(), $1, $1, 'home', NULL, NULL, 'noop')"
    for age in (350, 50):
        await database.execute(ask, NOW - age * DAY)
    wait = """INSERT INTO open_runs (due_at, run_id, site, trigger, engine, start_at, is_certain, look_at)
        VALUES ($1, gen_random_uuid(), 'home', 'manual', 'noop', $1, true, $1)"""
    for age in (350, 50):
        await database.execute(wait, NOW - age * DAY)
    await insert(database, row(NOW - 350 * DAY))
    assert (await audit(database, began_at, NOW, now=NOW)).missing.count > 390
    await drop_before(database, NOW - 200 * DAY)
    found = await audit(database, began_at, NOW, now=NOW)
    assert found.since == first
    assert 190 < found.missing.count < 240
    assert [each.number for each in await versions(database)] == [3, 4, 5]
    assert await database.fetchval("SELECT count(*) FROM asked_runs") == await database.fetchval("SELECT count(*) FROM open_runs") == 1
    # what was looked at stays so, and the gaps before the beginning are not looked for
    assert await database.fetchval("SELECT settled_until FROM ledger_state") == NOW
    await database.execute("UPDATE ledger_state SET began_at = $1, settled_until = $1", began_at)
    await drop_before(database, NOW - 200 * DAY)
    assert await database.fetchval("SELECT settled_until FROM ledger_state") == first


async def test_what_the_streams_still_have_is_never_dropped(database: Database) -> None:
    """Whoever asks for it: a replay would bring it back."""
    with pytest.raises(asyncpg.InvalidParameterValueError, match="31 days"):
        await drop_before(database, NOW - 30 * DAY)


async def test_nothing_is_dropped_while_gaps_are_looked_for(database: Database, postgres_server: Postgres) -> None:
    """Both read and change the ledger."""
    await insert(database, row(NOW - 400 * DAY))
    other = await asyncpg.connect(postgres_server.database(await database.fetchval("SELECT current_database()")))
    try:
        async with alone(other) as is_alone:
            assert is_alone
            assert await drop_before(database, NOW - 200 * DAY) is None
        assert await drop_before(database, NOW - 200 * DAY) == 1
    finally:
        await other.close()


async def test_a_long_reader_is_not_waited_for(database: Database, postgres_server: Postgres) -> None:
    """While a transaction reads the results, a month is neither made nor dropped, and others need not wait behind that."""
    await insert(database, row(NOW - 400 * DAY))
    other: Any = await asyncpg.connect(postgres_server.database(await database.fetchval("SELECT current_database()")))
    try:
        async with other.transaction():
            await other.fetchval("SELECT count(*) FROM results")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await drop_before(database, NOW - 200 * DAY)
            with pytest.raises(asyncpg.LockNotAvailableError):
                await make_ahead(database, NOW.date())
        assert await drop_before(database, NOW - 200 * DAY) == 1
    finally:
        await other.close()


async def test_a_recorder_looks_after_the_months(bus: Bus, database: Database, database_url: str, start: Start) -> None:
    """It makes the next one and drops what is older than it is told to keep; what it records meanwhile is there."""
    await insert(database, row(NOW - 100 * DAY))
    recorder = start("recorder", database_url, REFRESHER_RETENTION="40d")

    async def looked_after() -> bool:
        there = await months(database)
        return there[0] > f"results_{NOW - 100 * DAY:%Y_%m}" and there[-1] > f"results_{NOW:%Y_%m}"

    await until(looked_after)
    await publish(bus, a_result())
    await until(rows(database, 1))

    async def told() -> bool:
        return recorder.metric("refresher_results_months_dropped_total") == 1 and recorder.metric("refresher_results_month_ahead") == 1

    await until(told)


@pytest.mark.parametrize("wrong", ["30d", "400", "1y", "36501d", "-40d"])
def test_a_retention_that_is_none_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too short, too long, or not a number of days."""
    monkeypatch.setenv("REFRESHER_RETENTION", wrong)
    with pytest.raises(ValidationError):
        RecorderSettings()


@pytest.mark.parametrize(("given", "read"), [("", None), ("31d", 31 * DAY), ("400d", 400 * DAY)])
def test_a_retention_is_a_number_of_days(given: str, read: timedelta | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, as compose gives it where nothing is set, keeps everything."""
    monkeypatch.setenv("REFRESHER_RETENTION", given)
    assert RecorderSettings().retention == read
