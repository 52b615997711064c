"""Answers that are kept: given again while nothing was committed, and never afterwards."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from services.api import memory
from services.api.database import Database
from services.api.memory import Memory
from services.api.problems import ProblemError, refused
from shared.database import Connection
from shared.errors import Unavailable
from shared.settings import DatabaseSettings
from tests.integration.api_server import in_process
from tests.integration.rows import insert, row
from tests.servers import Nats

T0 = datetime(2026, 9, 30, 22, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
async def opened(database: Connection, database_url: str) -> AsyncIterator[Database]:
    """Give the database of the API, with a month and a row in it."""
    await insert(database, row(T0))
    opened = Database(DatabaseSettings(database_url=database_url))
    async with opened.opened():
        yield opened


class Counted:
    """Reads how many results there are, and knows how often it did."""

    def __init__(self, database: Database) -> None:
        self.database, self.times, self.began = database, 0, asyncio.Event()

    async def __call__(self) -> bytes:
        """Return the number as text."""
        self.times += 1
        self.began.set()
        found = await self.database.row("SELECT count(*)::text FROM results")
        assert found
        return str(found[0]).encode()


async def knowing(database: Database, *questions: object) -> Memory:
    """Return a memory that was asked these questions before."""
    kept, make = Memory(database), Counted(database)
    for question in questions:
        await kept.answer(question, make)
    assert make.times == len(questions)
    return kept


async def test_what_is_asked_for_the_first_time_is_not_kept(
    opened: Database, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs no look at what the database shows, and is read anew by the next who asks; so is what was forgotten."""
    monkeypatch.setattr(memory, "ASKED", 2)
    monkeypatch.setattr(memory, "_SHOWN", "SELECT 1 / 0")
    kept, make = Memory(opened), Counted(opened)
    assert (await kept.answer("how many", make)).body == b"1"
    monkeypatch.undo()
    await insert(database, row(T0 + HOUR))
    assert (await kept.answer("how many", make)).body == b"2"
    monkeypatch.setattr(memory, "ASKED", 2)
    monkeypatch.setattr(memory, "_SHOWN", "SELECT 1 / 0")
    assert [(await kept.answer(each, make)).body for each in ("another", "a third", "how many")] == [b"2"] * 3


async def test_a_question_that_is_refused_is_refused_again_without_a_look(opened: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the database is away: what is wrong with the question must not turn into an outage."""
    monkeypatch.setattr(memory, "_SHOWN", "SELECT 1 / 0")
    kept = Memory(opened)

    async def refuse() -> bytes:
        raise refused("bucket", "more than 2000 buckets")

    for _ in range(3):
        with pytest.raises(ProblemError):
            await kept.answer("too many", refuse)


async def test_an_answer_is_read_once_until_something_is_committed(opened: Database, database: Connection) -> None:
    """Neither what only reads nor what is yet to be committed has it read again; a commit does.

    Each is asked three times: Postgres itself may commit something in between, once.
    """
    kept, make = await knowing(opened, "how many", "another", "a third"), Counted(opened)
    assert [(await kept.answer("how many", make)).body for _ in range(3)] == [b"1"] * 3
    assert make.times < 3
    async with database.transaction():
        await insert(database, row(T0 + HOUR))
        make.times = 0
        assert [(await kept.answer("how many", make)).body for _ in range(3)] == [b"1"] * 3
        assert make.times < 2
    make.times = 0
    assert [(await kept.answer("how many", make)).body for _ in range(3)] == [b"2"] * 3
    assert make.times < 3
    assert [(await kept.answer(each, make)).body for each in ("another", "a third")] == [b"2"] * 2
    assert make.times > 2
    await database.execute("DROP TABLE results_2026_09")
    assert (await kept.answer("how many", make)).body == b"0"


async def test_what_is_committed_while_an_answer_is_read_is_in_the_next(opened: Database, database: Connection) -> None:
    """Whether the reading saw it or not, and whoever else asked meanwhile."""
    kept, make = await knowing(opened, "how many", "later"), Counted(opened)

    def beside(*steps: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[bytes]]:
        async def all_of_them() -> bytes:
            answer = b""
            for step in steps:
                done = await step()
                answer = done if isinstance(done, bytes) else answer
            return answer

        return all_of_them

    async def comes() -> None:
        await insert(database, row(T0 + HOUR))

    async def another() -> bytes:
        return (await kept.answer("how many", make)).body

    assert (await kept.answer("how many", beside(make, comes))).body == b"1"
    assert (await kept.answer("how many", make)).body == b"2"
    assert (await kept.answer("later", beside(make, comes, another))).body == b"3"
    assert (await kept.answer("later", make)).body == b"3"


async def test_no_more_is_kept_than_there_is_room_for(opened: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than all of it is given and not kept."""
    monkeypatch.setattr(memory, "LARGEST", 100)
    kept, asked = await knowing(opened, 40, 41, 42, 101), list[int]()

    async def answer(size: int) -> bytes:
        async def make() -> bytes:
            asked.append(size)
            return bytes(size)

        return (await kept.answer(size, make)).body

    for size in (40, 41, 40, 101, 101, 41, 42, 40):
        assert len(await answer(size)) == size
    assert asked == [40, 41, 101, 101, 42, 40]


async def test_what_many_ask_at_once_is_read_once(opened: Database) -> None:
    """Also when the first of them goes away; and an error is everybody's, but not kept."""
    kept, make, errors = await knowing(opened, "how many", "wrong"), Counted(opened), 0
    asking = [asyncio.create_task(kept.answer("how many", make)) for _ in range(20)]
    await make.began.wait()
    asking[0].cancel()
    assert [each.body for each in await asyncio.gather(*asking[1:])] == [b"1"] * 19
    assert make.times < 3

    async def wrong() -> bytes:
        raise Unavailable("not now")

    for each in await asyncio.gather(*(kept.answer("wrong", wrong) for _ in range(3)), return_exceptions=True):
        errors += isinstance(each, Unavailable)
    assert errors == 3
    assert (await kept.answer("wrong", make)).body == b"1"


PATHS = ("/api/v1/results?limit=3", "/api/v1/summary?from=2026-09-01T00:00:00Z&to=2026-11-01T00:00:00Z&site=home")


@pytest.mark.parametrize("path", PATHS)
async def test_what_the_api_keeps_is_what_it_would_read(nats_server: Nats, database: Connection, database_url: str, path: str) -> None:
    """A row shows in pages and summaries as soon as it is committed, and no sooner."""
    await insert(database, row(T0))
    async with in_process(nats_server.url, database_url) as api:
        first, again = (await api.get(path)).content, (await api.get(path)).content
        assert again == first
        async with database.transaction():
            await insert(database, row(T0 + HOUR))
            assert (await api.get(path)).content == first
        second = (await api.get(path)).content
        assert second != first
        assert (await api.get(path)).content == second
        other = (await api.get(path.replace("limit=3", "limit=1").replace("home", "office"))).content
        assert other not in {first, second}
