"""What the recorder's SQL does with a large batch, in a real Postgres."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from services.recorder import store
from shared.events import Failure, Measurement, Result, Status

Database = Any
"""An asyncpg connection."""
FIRST = datetime(2001, 1, 31, 23, 59, tzinfo=UTC)
MANY = store.COPIED_FROM + 10


def results(number: int, **fields: Any) -> list[Result]:
    """Return results of runs on both sides of a month's end."""
    given = {
        "site": "home",
        "trigger": "manual",
        "engine": "http",
        "status": Status.SUCCEEDED,
        "runner": "runner-1",
        "measurement": Measurement(latency_s=0.01),
    }
    dues = (FIRST + timedelta(seconds=10 * each) for each in range(number))
    return [Result(**{**given, "run_id": uuid4(), "due_at": due, "started_at": due, "finished_at": due, **fields}) for due in dues]


async def ids(database: Database) -> set[object]:
    """Return the runs that have a row."""
    return {row["run_id"] for row in await database.fetch("SELECT run_id FROM results")}


async def test_a_large_batch_is_stored_as_a_small_one_is(database: Database) -> None:
    """Rows that COPY wrote are those that INSERT would have written, in partitions that were not there."""
    many = results(MANY)
    assert await store.record(database, many) == MANY
    copied = await database.fetch("SELECT * FROM results ORDER BY run_id")
    assert await database.fetchval("SELECT count(DISTINCT tableoid) FROM results") == 2
    await database.execute("TRUNCATE results")
    assert await store.insert(database, many) == MANY
    inserted = await database.fetch("SELECT * FROM results ORDER BY run_id")
    assert [{**row, "recorded_at": None} for row in copied] == [{**row, "recorded_at": None} for row in inserted]


async def test_a_result_alone_is_stored_as_one_of_many_is(database: Database) -> None:
    """Its statement of its own writes the same row, makes the month that is not there, and skips what is."""
    many = results(2, log="said", failure=None)
    assert [await store.insert(database, [each]) for each in many] == [1, 1]
    assert await store.insert(database, many[:1]) == 0
    alone = await database.fetch("SELECT * FROM results ORDER BY run_id")
    await database.execute("TRUNCATE results")
    assert await store.insert(database, many) == 2
    together = await database.fetch("SELECT * FROM results ORDER BY run_id")
    assert [{**row, "recorded_at": None} for row in alone] == [{**row, "recorded_at": None} for row in together]


async def test_a_large_batch_is_one_copy(database: Database) -> None:
    """That is what makes a backlog short: the server runs no INSERT for it."""
    await database.execute("CREATE RULE none AS ON INSERT TO results DO INSTEAD NOTHING")
    with pytest.raises(asyncpg.FeatureNotSupportedError):  # says INSERT; COPY takes no notice of rules
        await store.record(database, results(1))
    await store.record(database, results(MANY))
    assert len(await ids(database)) == MANY


async def test_what_is_there_already_leaves_the_rest_of_a_large_batch_new(database: Database) -> None:
    """COPY refuses all of it: then only the others are counted as new, also where one comes twice in the batch."""
    many = results(MANY)
    await store.record(database, many[:3])
    assert await store.record(database, [*many, many[-1]]) == MANY - 3
    assert await ids(database) == {result.run_id for result in many}


async def test_a_large_batch_takes_the_place_of_guesses(database: Database) -> None:
    """What runners say beats what was guessed without them, however many it is of at once."""
    guessed = results(MANY, status=Status.MISSED, measurement=None, runner=None, started_at=None, failure=Failure(kind="lost", message="x"))
    assert await store.record(database, guessed) == MANY
    known = [result.model_copy(update={"run_id": guess.run_id}) for result, guess in zip(results(MANY), guessed, strict=True)]
    assert await store.record(database, known) == MANY
    assert await database.fetchval("SELECT count(*) FROM results WHERE status = 'succeeded' AND failure_kind IS NULL") == MANY


async def test_what_a_rule_of_the_table_refuses_is_refused(database: Database) -> None:
    """Only the lack of a partition is mended: the error says which rule, and nothing of the batch is stored, large or small."""
    await database.execute("ALTER TABLE results ADD CHECK (engine <> 'forbidden')")
    for number in (1, MANY):
        with pytest.raises(asyncpg.CheckViolationError, match="results_engine_check"):
            await store.record(database, results(number, engine="forbidden"))
    assert not await ids(database)
