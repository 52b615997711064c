"""Dead letters, from the API and the command line: seen, published again, dropped."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from shared import subjects
from shared.dead import LONGEST, REASON, SEQUENCE, SIZE, SUBJECT
from shared.letters import LONGEST_SHOWN
from tests.commands import Refresher
from tests.http import plain_client
from tests.integration.conftest import Bus, Start, until
from tests.integration.test_recorder import Database, a_result, publish, rows, settled
from tests.services import ServiceProcess

RESULTS = subjects.dead(subjects.RESULTS)
HOURLY = "refresher.result.home.hourly"


@pytest.fixture
def recorder(start: Start, database_url: str) -> ServiceProcess:
    """Give a running recorder."""
    return start("recorder", database_url)


@pytest.fixture
def api_process(start: Start, database_url: str) -> ServiceProcess:
    """Give a running API."""
    return start("api", database_url)


@pytest.fixture
async def api(api_process: ServiceProcess) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of that API."""
    async with plain_client(f"{api_process.url}/api/v1") as client:
        yield client


@pytest.fixture
def refresher(api_process: ServiceProcess) -> Refresher:
    """Give the command line of that API."""
    return Refresher(REFRESHER_API_URL=api_process.url)


async def bury(bus: Bus, data: bytes, subject: str = RESULTS, **headers: str) -> int:
    """Put a letter among the dead and return its number."""
    return (await bus.js.publish(subject, data, headers={"Nats-Msg-Id": str(uuid4()), **headers})).seq


async def refused(api: httpx.AsyncClient, method: str, path: str, status: int) -> str:
    """Ask for something that is refused, as a problem document, and return its detail."""
    answer = await api.request(method, path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"])


async def test_a_result_that_can_be_read_by_now_is_published_again(
    bus: Bus, recorder: ServiceProcess, database: Database, refresher: Refresher
) -> None:
    """Refused by the table, listed with its reason, shown as it came; after the table has changed it becomes a row."""
    await database.execute("ALTER TABLE results ADD CONSTRAINT strict CHECK (engine <> 'forbidden')")
    result = a_result(engine="forbidden")
    await publish(bus, result, b"garbage")
    await until(lambda: settled(bus))
    listed = refresher("dead", "list").stdout.splitlines()
    assert listed[0].split("\t") == ["id", "put aside", "came on", "bytes", "reason"]
    letters = {each["stream_sequence"]: each for each in refresher.json("dead", "list")}
    number = str(letters[1]["sequence"])
    assert "CheckViolation" in letters[1]["reason"]
    assert (letters[1]["subject"], letters[1]["stream"], letters[1]["obstacle"]) == (HOURLY, "RESULTS", None)
    (shown,) = refresher.json("dead", "show", number)
    assert (shown["content"].encode(), shown["encoding"], shown["is_whole"]) == (result.to_json(), "text", True)
    told = refresher("dead", "show", number).stdout
    assert str(result.run_id) in told
    assert "redrive\tyes" in told
    await database.execute("ALTER TABLE results DROP CONSTRAINT strict")
    assert refresher("dead", "redrive", number).stderr == "Published 1 again.\n"
    await until(rows(database, 1))
    assert await database.fetchval("SELECT run_id FROM results") == result.run_id
    assert [each["stream_sequence"] for each in refresher.json("dead", "list")] == [2]
    assert f"There is no dead letter {number}." in refresher("dead", "redrive", number, code=1).stderr


async def test_all_are_those_that_are_there_now(bus: Bus, recorder: ServiceProcess, database: Database, refresher: Refresher) -> None:
    """What is refused anew does not come round for ever; what cannot be published ends nothing; then all are dropped."""
    good = a_result()
    await bury(bus, good.to_json(), **{SUBJECT: HOURLY})
    for number in range(150):  # more than a page
        await bury(bus, f"garbage {number}".encode(), **{SUBJECT: HOURLY})
    tick = await bury(bus, b"no tick", subjects.dead(subjects.TICKS), **{SUBJECT: "refresher.tick.home.hourly.1"})
    done = await asyncio.to_thread(refresher, "dead", "redrive", "--all", code=1)
    assert f"Dead letter {tick} cannot be published again: a tick is over" in done.stderr
    assert done.stderr.endswith("Published 151 again.\n")
    await until(rows(database, 1))
    await until(lambda: settled(bus))
    letters = refresher.json("dead", "list", "--limit", "1000")
    assert [each["sequence"] for each in letters] == [tick, *range(tick + 1, tick + 151)], "each of the garbage once, with a new number"
    assert "These are 20 of 151" in refresher("dead", "list").stderr
    dropped = await asyncio.to_thread(refresher, "dead", "drop", "--all")
    assert dropped.stderr == "Dropped 151.\n"
    assert refresher("dead", "list").stderr == "There are no dead letters.\n"
    assert not await bus.count(subjects.DEAD)


def test_one_says_which(refresher: Refresher) -> None:
    """Neither nothing nor everything by mistake."""
    for command in ("redrive", "drop"):
        assert "say which" in refresher("dead", command, code=2).stderr
        assert "say which" in refresher("dead", command, "1", "--all", code=2).stderr
        assert "greater than or equal to 1" in refresher("dead", command, "0", code=2).stderr


async def test_published_again_twice_is_one_row(bus: Bus, recorder: ServiceProcess, database: Database, api: httpx.AsyncClient) -> None:
    """A server that refuses the removal stands for a crash before it: again and again, late or at once, one row comes of it."""
    result = a_result()
    await bus.js.delete_stream(subjects.DEAD)
    await bus.js.add_stream(StreamConfig(name=subjects.DEAD, subjects=[subjects.ALL_DEAD], deny_delete=True))
    number = await bury(bus, result.to_json(), **{SUBJECT: HOURLY})
    for _ in range(2):
        assert "cannot do it now" in await refused(api, "POST", f"/dead/{number}/redrive", 503)
    await until(rows(database, 1))
    assert await bus.count(subjects.RESULTS) == 1, "shortly after, the server drops the second by its id"
    assert await bus.count(subjects.DEAD) == 1
    await publish(bus, result)  # long after, it takes it
    await until(lambda: settled(bus))
    assert await bus.count(subjects.RESULTS) == 2
    assert await database.fetchval("SELECT count(*) FROM results") == 1


async def test_two_at_once_publish_it_once(bus: Bus, recorder: ServiceProcess, database: Database, api: httpx.AsyncClient) -> None:
    """Whoever comes second finds it published, or gone."""
    number = await bury(bus, a_result().to_json(), **{SUBJECT: HOURLY})
    answers = await asyncio.gather(*(api.post(f"/dead/{number}/redrive") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200, 404}
    await until(rows(database, 1))
    assert await bus.count(subjects.RESULTS) == 1
    assert await bus.count(subjects.DEAD) == 0


async def test_what_cannot_be_published_again_stays(bus: Bus, recorder: ServiceProcess, api: httpx.AsyncClient) -> None:
    """Each with its reason: a runner's letter that names another subject cannot reach it, half a message is no message."""
    office = {SUBJECT: "refresher.result.office.hourly"}
    letters = {
        await bury(bus, b"x", subjects.dead(subjects.TICKS), **office): "measure now",
        await bury(bus, b"x", subjects.dead(subjects.ADVISORIES), **office): "server itself",
        await bury(bus, b"x"): "name no subject",
        await bury(bus, b"x", **{SUBJECT: "refresher.tick.home.hourly.1"}): "name no subject",
        await bury(bus, b"x", **{SUBJECT: "refresher.result.home.>"}): "name no subject",
        await bury(bus, b"x", **{SUBJECT: "refresher.result.home.a b"}): "name no subject",
        await bury(bus, b"x", **{SUBJECT: HOURLY, SIZE: "1000000"}): "too large",
    }
    for number, reason in letters.items():
        assert reason in await refused(api, "POST", f"/dead/{number}/redrive", 409)
        assert reason in (await api.get(f"/dead/{number}")).json()["obstacle"]
    assert await bus.count(subjects.DEAD) == len(letters)
    assert not await bus.count(subjects.RESULTS)


async def test_while_results_take_nothing_the_letter_stays(bus: Bus, recorder: ServiceProcess, api: httpx.AsyncClient) -> None:
    """A stream that is full refuses, and nothing is lost."""
    config = (await bus.js.stream_info(subjects.RESULTS)).config
    await bus.js.update_stream(config.evolve(max_msgs=1, discard=DiscardPolicy.NEW))
    await publish(bus, b"the only one")
    number = await bury(bus, a_result().to_json(), **{SUBJECT: HOURLY})
    assert "maximum messages exceeded" in await refused(api, "POST", f"/dead/{number}/redrive", 503)
    assert (await api.get(f"/dead/{number}")).status_code == 200


async def test_pages_and_what_is_not_there(bus: Bus, recorder: ServiceProcess, api: httpx.AsyncClient) -> None:
    """The oldest first, whatever was dropped between; 404 for what is not there, 422 for what could never be."""
    assert (await api.get("/dead")).json() == {"items": [], "next": None, "total": 0}
    for number in (1, 7, 2**53 - 1):
        for method, path in (("GET", ""), ("POST", "/redrive"), ("DELETE", "")):
            assert await refused(api, method, f"/dead/{number}{path}", 404) == f"There is no dead letter {number}."
    numbers = [await bury(bus, b"x") for _ in range(7)]
    for number in (1, 4, 5):
        assert (await api.delete(f"/dead/{number}")).status_code == 204
        assert await refused(api, "DELETE", f"/dead/{number}", 404)
    page = (await api.get("/dead?limit=2")).json()
    assert ([each["sequence"] for each in page["items"]], page["next"], page["total"]) == ([2, 3], 3, 4)
    page = (await api.get("/dead?limit=2&after=3")).json()
    assert ([each["sequence"] for each in page["items"]], page["next"]) == ([6, 7], None)
    assert (await api.get(f"/dead?after={numbers[-1]}")).json() == {"items": [], "next": None, "total": 4}
    for path in ("/dead?limit=0", "/dead?limit=101", "/dead?after=-1", f"/dead?after={2**53}", "/dead/0", "/dead/x", f"/dead/{2**53}"):
        await refused(api, "GET", path, 422)


CONTENTS = {
    "nothing": b"",
    "bytes": bytes(range(256)),
    "a megabyte": b"\xff" * 900_000,
    "a megabyte of text": b"x" * 900_000,
    "a character on the border": b"x" * (LONGEST_SHOWN - 1) + "é".encode() * 10,
    "control characters": b"\x00\x1b[31mred\x07\n\xc2\x9b2J",
    "only control characters": b"\x00" * LONGEST_SHOWN,
    "half a surrogate pair": b"\xed\xa0\x80",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
async def test_whatever_it_is_it_is_shown(
    content: bytes, bus: Bus, recorder: ServiceProcess, api: httpx.AsyncClient, refresher: Refresher
) -> None:
    """Text as text, bytes as base64, the beginning of what is long; a terminal is told nothing that it would obey."""
    number = await bury(bus, content)
    letter = (await api.get(f"/dead/{number}")).json()
    shown = letter["content"].encode() if letter["encoding"] == "text" else base64.b64decode(letter["content"])
    assert content.startswith(shown)
    assert min(len(content), LONGEST_SHOWN) - len(shown) <= 1, "all of it, or of the beginning, but for half a character"
    assert letter["is_whole"] == (shown == content)
    assert (letter["size_bytes"], letter["kept_bytes"]) == (len(content), len(content))
    told = await asyncio.to_thread(refresher, "dead", "show", str(number))
    assert all(each.isprintable() or each in "\n\t" for each in told.stdout)
    assert (await api.get("/dead")).json()["items"] == [
        {name: letter[name] for name in letter if name not in {"content", "encoding", "is_whole"}}
    ]


async def test_a_hundred_large_letters_are_a_page(bus: Bus, recorder: ServiceProcess, api: httpx.AsyncClient) -> None:
    """As large as they are ever kept, with reasons as long as they can be: the answer is there, and small."""
    headers = {REASON: "r" * 5_000, SUBJECT: "refresher.result.home." + "s" * 5_000, SEQUENCE: "9" * 30, SIZE: "no number"}
    for _ in range(100):
        await bury(bus, b"\xff" * LONGEST, **headers)
    answer = await api.get("/dead?limit=100")
    assert len(answer.json()["items"]) == 100
    assert len(answer.content) < 2**18
    assert {(each["stream_sequence"], each["size_bytes"]) for each in answer.json()["items"]} == {(None, LONGEST)}


async def test_headers_that_are_no_text_are_shown(bus: Bus, recorder: ServiceProcess, api: httpx.AsyncClient) -> None:
    """Whoever may write letters may write anything into their headers."""
    headers = b"NATS/1.0\r\n%b: caf\xc3\xa9 \xff\r\n%b: \xfe\r\nno colon\r\n\r\n" % (REASON.encode(), SUBJECT.encode())
    reader, writer = await asyncio.open_connection(bus.client.connected_url.hostname, bus.client.connected_url.port)
    login = {"user": bus.client.connected_url.username, "pass": bus.client.connected_url.password, "headers": True, "verbose": False}
    writer.write(
        b"CONNECT %b\r\nHPUB %b %d %d\r\n%bx\r\nPING\r\n"
        % (json.dumps(login).encode(), RESULTS.encode(), len(headers), len(headers) + 1, headers)
    )
    await asyncio.wait_for(reader.readuntil(b"PONG"), 5)
    writer.close()
    await until(lambda: bus.count(subjects.DEAD))
    letter = (await api.get("/dead/1")).json()
    assert "caf" in letter["reason"]
    assert "name no subject" in letter["obstacle"]


async def test_without_a_recorder_it_is_said_at_once(api: httpx.AsyncClient) -> None:
    """503 with what to do: nobody else may look."""
    asked = asyncio.get_running_loop().time()
    for method, path in (("GET", "/dead"), ("GET", "/dead/1"), ("POST", "/dead/1/redrive"), ("DELETE", "/dead/1")):
        assert await refused(api, method, path, 503) == "No recorder is there to answer: start one."
    assert asyncio.get_running_loop().time() - asked < 2


async def test_what_is_no_question_is_answered_with_an_error(bus: Bus, recorder: ServiceProcess) -> None:
    """A person with the nats command is told what is wrong, as NATS services do; the endpoints are there for `nats micro`."""
    questions: dict[str, Any] = {
        subjects.LIST_DEAD: {"limit": 101},
        subjects.GET_DEAD: {},
        subjects.DROP_DEAD: {"sequence": 1, "all": True},
    }
    for subject, question in questions.items():
        answer = await bus.client.request(subject, json.dumps(question).encode(), timeout=5)
        assert answer.headers
        assert answer.headers["Nats-Service-Error-Code"] == "400"
        assert answer.headers["Nats-Service-Error"]
    info = await bus.client.request("$SRV.INFO.refresher-recorder", b"", timeout=5)
    assert {each["subject"] for each in json.loads(info.data)["endpoints"]} == {
        *(subjects.LIST_DEAD, subjects.GET_DEAD, subjects.REDRIVE_DEAD, subjects.DROP_DEAD)
    }
