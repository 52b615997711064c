"""The commands against a running system: real API, runner and recorder on real NATS and Postgres."""

import asyncio
import csv
import io
import json
import queue
import signal
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from typing import IO, Any
from uuid import UUID

import asyncpg
import pytest

from shared import subjects
from tests.commands import REFRESHER, Refresher
from tests.integration.conftest import Bus, Start, until
from tests.services import ServiceProcess

Database = asyncpg.Connection
INSERT = """
INSERT INTO results (run_id, due_at, site, schedule, trigger, engine, status, attempt, finished_at, download_bps, latency_s,
  server_sponsor, server_name, failure_kind, failure_message)
VALUES ($1, $2, $3, $4, 'schedule', 'speedtest', $5, 1, $2, $6, $7, $8, $9, $10, $11)
"""


@pytest.fixture
def api(bus: Bus, start: Start, database_url: str) -> ServiceProcess:
    """Give a running API."""
    return start("api", database_url)


@pytest.fixture
def refresher(api: ServiceProcess) -> Refresher:
    """Give the command line of that API."""
    return Refresher(REFRESHER_API_URL=api.url)


async def fill(database: "Database[asyncpg.Record]", count: int, *, site: str = "home") -> None:
    """Store results, one a minute until now; every third has failed."""
    now = datetime.now(UTC)
    await database.execute("SELECT results_partition($1)", now.date())
    await database.execute("SELECT results_partition($1)", (now - timedelta(minutes=count)).date())
    for number in range(count):
        due, measured = now - timedelta(minutes=number), number % 3 != 2
        outcome: list[Any] = ["succeeded", 94_100_000.0, 0.0123, "Example", "Berlin", None, None]
        if not measured:
            outcome = ["failed", None, None, None, None, "timeout", "no answer\x1b[31m within 30 s"]
        await database.execute(INSERT, UUID(int=number + (1 << 64 if site == "home" else 0)), due, site, "hourly", *outcome)


def test_a_schedule_from_its_making_to_its_end(refresher: Refresher) -> None:
    """Added, listed, shown, paused, resumed, removed: each says what it did, and the API has it."""
    added = refresher("schedules", "add", "nightly", "--cron", "0 3 * * *", "--zone", "Europe/Berlin", "--site", "home", "--site", "office")
    assert added.stderr.startswith("Added nightly: 0 3 * * * (Europe/Berlin), next due 20")
    refresher("schedules", "add", "often", "--every", "1h30m", "--phase", "5m", "--engine", "noop", "--option", "seconds=1", "--paused")
    assert refresher("schedules", "list").stdout.splitlines()[2].split("\t")[:5] == [
        *("often", "every 1h30m, 5m after the full period", "home", "noop", "paused"),
    ]
    nightly, often = refresher.json("schedules", "list")
    assert (nightly["sites"], nightly["start_within_s"]) == (["home", "office"], 3600)
    assert (often["timing"], often["options"]) == ({"kind": "interval", "every_s": 5400, "phase_s": 300}, {"seconds": 1})
    assert "next due" not in refresher("schedules", "show", "often").stdout
    refresher("schedules", "resume", "often")
    assert refresher.json("schedules", "show", "often")[0]["enabled"]
    refresher("schedules", "pause", "often")
    assert not refresher.json("schedules", "show", "often")[0]["enabled"]
    refresher("schedules", "remove", "often")
    assert [each["name"] for each in refresher.json("schedules", "list")] == ["nightly"]


def test_every_field_of_a_schedule_can_be_said(refresher: Refresher) -> None:
    """What is typed is what is stored, and `show` tells it."""
    refresher(
        *("schedules", "add", "all", "--cron", "30 2 * * *", "--zone", "Europe/Berlin", "--gap", "skip", "--fold", "both"),
        *("--exclude", "mon-fri 09:00-17:00", "--exclude", "2026-12-24T00:00Z/2026-12-27T00:00Z"),
        *("--from", "2026-01-01T00:00Z", "--until", "2099-01-01T00:00Z", "--max-runs", "500", "--spread", "5m", "--jitter", "30s"),
        *("--engine", "noop", "--option", "seconds=1", "--fallback", "speedtest", "--fallback-option", "upload=false"),
        *("--line", "fibre", "--label", "fast", "--overlap", "skip", "--priority", "7"),
        *("--catch-up", "all", "--catch-up-within", "6h", "--start-within", "10m"),
    )
    (stored,) = refresher.json("schedules", "show", "all")
    assert {key: value for key, value in stored.items() if key not in {"active_since", "revision", "next_due_at"}} == {
        "name": "all",
        "timing": {"kind": "cron", "expression": "30 2 * * *", "zone": "Europe/Berlin", "gap": "skip", "fold": "both"},
        "exclusions": [
            {"kind": "weekly", "days": ["mon", "tue", "wed", "thu", "fri"], "start": "09:00", "end": "17:00", "zone": "Europe/Berlin"},
            {"kind": "period", "from": "2026-12-24T00:00:00Z", "to": "2026-12-27T00:00:00Z"},
        ],
        "valid_from": "2026-01-01T00:00:00Z",
        "valid_until": "2099-01-01T00:00:00Z",
        "max_runs": 500,
        "spread_s": 300,
        "jitter_s": 30,
        "engine": "noop",
        "options": {"seconds": 1},
        "fallback": {"engine": "speedtest", "options": {"upload": False}},
        "sites": ["home"],
        "line": "fibre",
        "labels": ["fast"],
        "overlap": "skip",
        "priority": 7,
        "catch_up": "all",
        "catch_up_within_s": 21_600,
        "start_within_s": 600,
        "enabled": True,
    }
    shown = refresher("schedules", "show", "all").stdout
    for told in ("speedtest upload=False", "fibre", "fast", "mon,tue,wed,thu,fri 09:00-17:00", "500 runs", "all within 6h", "10m", "skip"):
        assert told in shown


def test_other_ways_to_say_when(refresher: Refresher) -> None:
    """Once, at random, and only when asked to; each says what it is."""
    once = refresher("schedules", "add", "once", "--at", "2099-01-01T00:00Z").stderr
    assert "once, " in once
    assert "next due 2099-01-01T00:00:00Z" in once
    assert "not due by itself" in refresher("schedules", "add", "manual", "--manual").stderr
    assert "every 2h on average" in refresher("schedules", "add", "random", "--random", "2h", "--shortest", "30m", "--longest", "4h").stderr
    past = refresher("schedules", "add", "past", "--at", "2020-01-01T00:00Z", code=1).stderr
    assert "timing.at: is in the past" in past


def test_a_schedule_is_foretold(refresher: Refresher) -> None:
    """The next instants with their starts, of all sites or of one; where it ends, that is said."""
    refresher("schedules", "add", "hourly", "--every", "1h", "--phase", "0s", "--site", "home", "--site", "office", "--jitter", "10m")
    found = refresher.json("schedules", "next", "hourly", "-n", "4")
    assert [each["site"] for each in found] == ["home", "office", "home", "office"]
    assert all(each["due_at"] <= each["start_at"] for each in found)
    assert [each["due_at"][14:] for each in found] == ["00:00.000000Z"] * 4
    assert len({each["start_at"] for each in found}) == 4
    assert {each["site"] for each in refresher.json("schedules", "next", "hourly", "--site", "office")} == {"office"}
    refresher("schedules", "add", "once", "--at", "2099-01-01T00:00Z")
    assert "After that it is not due again." in refresher("schedules", "next", "once").stderr
    assert "is no site of schedule" in refresher("schedules", "next", "hourly", "--site", "nowhere", code=1).stderr


def test_what_the_api_refuses_is_told_by_field(refresher: Refresher) -> None:
    """The problem document's detail and every field with its reason, on stderr."""
    refused = refresher("schedules", "add", "Bad Name", "--every", "0s", "--engine", "x y", code=1)
    for field in ("name", "timing.every_s", "engine"):
        assert f"{field}: " in refused.stderr
    assert "There is no schedule 'nothing'" in refresher("schedules", "show", "nothing", code=1).stderr
    refresher("schedules", "add", "twice", "--every", "1h")
    assert "twice" in refresher("schedules", "add", "twice", "--every", "1h", code=1).stderr
    assert "zone" in refresher("schedules", "add", "where", "--cron", "0 3 * * *", "--zone", "Moon", code=1).stderr


async def test_a_value_that_is_no_schedule_is_told(refresher: Refresher, bus: Bus) -> None:
    """Somebody wrote to the bucket by hand: the list stands, the stranger is named on stderr, and can be removed."""
    await (await bus.js.key_value(subjects.SCHEDULES)).put("broken", b"{}")
    listed = await asyncio.to_thread(refresher, "schedules", "list")
    assert "broken is no schedule and is ignored" in listed.stderr
    assert "broken" not in listed.stdout
    await asyncio.to_thread(refresher, "schedules", "remove", "broken")
    assert "broken" not in (await asyncio.to_thread(refresher, "schedules", "list")).stderr


async def test_results_as_a_table_json_and_csv(refresher: Refresher, database: "Database[asyncpg.Record]") -> None:
    """Newest first and 20 of them unless told; JSON by the line and past a page; CSV oldest first, all of it."""
    await fill(database, 1_100)
    lines = (await asyncio.to_thread(refresher, "results")).stdout.splitlines()
    assert len(lines) == 21
    assert lines[0].split("\t")[4:8] == ["status", "down Mbit/s", "up Mbit/s", "latency ms"]
    assert lines[1].split("\t")[1:] == ["home", "hourly", "speedtest", "succeeded", "94.1", "", "12.3", "Example, Berlin"]
    assert lines[3].split("\t")[4:] == ["failed", "", "", "", "timeout: no answer [31m within 30 s"]
    found = await asyncio.to_thread(refresher.json, "results", "--limit", "1050")
    assert len({each["run_id"] for each in found}) == 1_050
    assert [each["due_at"] for each in found] == sorted((each["due_at"] for each in found), reverse=True)
    table = (await asyncio.to_thread(refresher, "results", "--csv", "--status", "failed")).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == 366
    assert {row["failure_kind"] for row in rows} == {"timeout"}
    assert [row["due_at"] for row in rows] == sorted(row["due_at"] for row in rows)


async def test_results_are_narrowed(refresher: Refresher, database: "Database[asyncpg.Record]") -> None:
    """By site, status, schedule, engine and period; a filter that the API refuses is told."""
    await fill(database, 30)
    await fill(database, 5, site="office")

    async def count(*filters: str) -> int:
        return len(await asyncio.to_thread(refresher.json, "results", "--limit", "100", *filters))

    assert await count() == 35
    assert await count("--site", "office") == 5
    assert await count("--site", "home", "--status", "failed") == 10
    assert await count("--schedule", "other") == await count("--engine", "other") == 0
    assert await count("--site", "home", "--since", "9m30s") == 10
    assert await count("--site", "home", "--since", "19m30s", "--until", "9m30s") == 10
    refused = await asyncio.to_thread(refresher, "results", "--site", "No Site", code=1)
    assert "site: " in refused.stderr


async def test_a_reader_that_has_enough_is_no_error(refresher: Refresher, database: "Database[asyncpg.Record]") -> None:
    """`refresher results --json | head -1` says nothing on stderr."""
    await fill(database, 1_000)
    for command in ("results --json --limit 1000", "results --limit 1000", "results --csv", "results --help"):
        shell = f"{REFRESHER} {command} | head -n 1"
        done = await asyncio.to_thread(
            subprocess.run, shell, shell=True, env=refresher.environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""


def test_a_run_now_ends_with_its_result(refresher: Refresher, start: Start, database_url: str) -> None:
    """Ad hoc or by schedule: what was stored is shown, and a run that failed fails the command."""
    start("runner")
    start("recorder", database_url)
    assert refresher("run-now", "--engine", "noop").stdout.splitlines() == ["status\tsucceeded", "site\thome", "engine\tnoop"]
    refresher("schedules", "add", "other", "--every", "1d", "--engine", "noop", "--option", "seconds=0.1", "--paused")
    (stored,) = refresher.json("run-now", "other")
    assert (stored["schedule"], stored["status"], stored["trigger"]) == ("other", "succeeded", "manual")
    assert refresher.json("results", "--limit", "1")[0]["run_id"] == stored["run_id"]
    failed = refresher("run-now", "--engine", "noop", "--option", "seconds=x", code=1)
    assert "the run failed: misconfigured: " in failed.stderr
    assert failed.stdout.startswith("status\tfailed\n")
    assert refresher.json("run-now", "--engine", "bogus", code=1)[0]["failure"]["kind"] == "no_engine"


def test_a_run_can_be_asked_for_without_waiting(refresher: Refresher) -> None:
    """Its id is there at once; nobody need be there to run it."""
    (asked,) = refresher.json("run-now", "--no-wait", "--engine", "noop", "--site", "office")
    assert (asked["site"], asked["engine"], asked["schedule"]) == ("office", "noop", None)
    assert refresher("run-now", "--no-wait", "--engine", "noop").stdout.startswith("run\t")
    assert "There is no schedule 'bogus'" in refresher("run-now", "bogus", code=1).stderr


def test_waiting_for_nobody_says_so(refresher: Refresher) -> None:
    """Without a runner the wait ends when it was told to, with what to do."""
    refused = refresher("run-now", "--engine", "noop", "--timeout", "1s", code=1)
    assert "No runner is there for site home" in refused.stderr
    assert "no result after 1s: the run goes on" in refused.stderr


def test_runners_are_listed(refresher: Refresher, start: Start) -> None:
    """Nobody there is no error, and says how to start one."""
    assert "start one with `refresher run runner`" in refresher("runners").stderr
    start("runner")
    (runner,) = refresher.json("runners")
    assert runner["site"] == "home"
    assert refresher("runners").stdout.splitlines()[1].split("\t")[:3] == ["home", "-", runner["id"]]


class Lines:
    """The lines that a command writes, as they come."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)

    async def run_id(self, deadline_s: float = 40) -> UUID:
        """Wait for a result as JSON and return its run.

        Raises: queue.Empty when none comes.
        """
        return UUID(json.loads(await asyncio.to_thread(self._lines.get, timeout=deadline_s))["run_id"])


async def test_following_outlives_the_api(
    refresher: Refresher, api: ServiceProcess, start: Start, database_url: str, bus: Bus, database: "Database[asyncpg.Record]"
) -> None:
    """What is at hand, what comes, what came while the API was away, and what comes after: each once."""
    start("runner")
    start("recorder", database_url)

    async def stored() -> UUID:
        tick = await bus.tick()
        await until(lambda: database.fetchval("SELECT run_id FROM results WHERE run_id = $1", tick.run_id))
        return tick.run_id

    before = [await stored(), await stored()]
    with refresher.running("results", "--follow", "--json", "--limit", "1") as process:
        assert process.stdout
        assert process.stderr
        lines = Lines(process.stdout)
        assert await lines.run_id() == before[-1]
        assert await stored() == await lines.run_id()
        api.kill()
        missed = [await stored(), await stored()]
        api.start()
        assert [await lines.run_id(), await lines.run_id()] == missed
        assert await stored() == await lines.run_id()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert [line.split("Waiting")[1] for line in process.stderr] == [" for it.\n"]


async def test_following_a_row_that_comes_late(refresher: Refresher, start: Start, database_url: str, bus: Bus) -> None:
    """The runner is done, but the recorder is away: the result is shown once it is stored, without any other event."""
    start("runner")
    with refresher.running("results", "--follow", "--json") as process:
        assert process.stdout
        lines = Lines(process.stdout)
        tick = await bus.tick()
        with pytest.raises(queue.Empty):
            await lines.run_id(4)
        start("recorder", database_url)
        assert await lines.run_id() == tick.run_id


def test_another_program_at_that_address_is_told(nats_server: Any) -> None:
    """Whatever answers there, it is not taken for the API."""
    monitor = nats_server.url.rsplit(":", 1)[1]
    refused = Refresher(REFRESHER_API_URL=f"http://127.0.0.1:{monitor}")("runners", code=1)
    assert f"127.0.0.1:{monitor}" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_an_engine_refuses_options_before_they_are_stored(refresher: Refresher, start: Start) -> None:
    """By its own model, on the runner that will measure; where no runner is there to say, the schedule is stored."""
    refresher("schedules", "add", "early", "--every", "1h", "--engine", "noop", "--option", "second=1")
    start("runner")
    refused = refresher("schedules", "add", "wrong", "--every", "1h", "--engine", "noop", "--option", "second=1", code=1).stderr
    assert "options.second: Extra inputs are not permitted" in refused
    again = ("--fallback", "speedtest", "--fallback-option", "server_ids=[-1]")
    refused = refresher("schedules", "add", "wrong", "--every", "1h", "--engine", "noop", *again, code=1).stderr
    assert "fallback.options.server_ids.0: Input should be greater than or equal to 1" in refused
    anywhere = ("--engine", "noop", "--line", "any", "--option", "second=1")
    refused = refresher("schedules", "add", "wrong", "--every", "1h", *anywhere, code=1).stderr
    assert "options.second: Extra inputs are not permitted" in refused, "one of the lines is asked"
    refresher("schedules", "add", "right", "--every", "1h", "--engine", "noop", "--option", "seconds=1")
    refresher("schedules", "add", "stranger", "--every", "1h", "--engine", "teleport", "--option", "seconds=1")
