"""The ledger: whatever is down, every instant that was due ends as exactly one row, which says why nobody ran it."""

import asyncio
import json
import shutil
import signal
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.recorder import open_runs
from shared import subjects
from shared.audit import Audit, audit
from shared.connect import NATS_AWAY
from shared.due import instants, start_of
from shared.errors import TooMuch
from shared.events import Failure, Status, run_id_of
from shared.ledger import Due
from shared.provision import PIN_GROUP, provision
from shared.pull import Pull
from tests.commands import Refresher
from tests.integration.api_server import api_server
from tests.integration.conftest import Bus, Start, interval, until
from tests.integration.rows import insert, row
from tests.integration.test_recorder import Database, a_result, publish
from tests.servers import Nats, Postgres, running

QUICK = {"REFRESHER_RECORDER_SETTLE_EVERY_S": "0.2", "REFRESHER_RECORDER_SETTLE_AFTER_S": "1", "REFRESHER_RECORDER_AUDIT_EVERY_S": "0.5"}
LONG = timedelta(hours=2)
SECOND = timedelta(seconds=1)
ACK_WAIT_S = 30
"""After so long NATS gives what a dead recorder held to another."""


async def kinds(database: Database, schedule: str | None = None) -> "Counter[str | None]":
    """Return how many rows there are of each reason; None stands for those that succeeded."""
    rows = await database.fetch("SELECT failure_kind FROM results WHERE schedule = coalesce($1, schedule)", schedule)
    return Counter(row["failure_kind"] for row in rows)


async def due_of(database: Database, schedule: str) -> list[datetime]:
    """Return the instants that have a row, in order."""
    rows = await database.fetch("SELECT due_at FROM results WHERE schedule = $1 ORDER BY due_at", schedule)
    return [row["due_at"] for row in rows]


async def row_of(database: Database, run_id: UUID) -> Any:
    """Wait for the row of a run."""
    return await until(lambda: database.fetchrow("SELECT * FROM results WHERE run_id = $1", run_id))


async def audited(database: Database, **filters: Any) -> Audit:
    """Audit everything so far, as if it were long ago: no row is on its way any more."""
    now = datetime.now(UTC)
    return await audit(database, now - LONG, now, now=now + LONG, **filters)


async def until_settled(database: Database, deadline_s: float = 20) -> Audit:
    """Wait until every instant has its row, and return what an audit then says."""
    moment = datetime.now(UTC)

    async def settled() -> bool:
        everything = await database.fetchval("SELECT settled_until > $1 FROM ledger_state", moment)
        return bool(everything and not await database.fetchval("SELECT count(*) FROM open_runs"))

    await until(settled, deadline_s)
    found = await audited(database)
    assert found.is_clean, found
    return found


async def remove(bus: Bus, name: str) -> None:
    """Remove a schedule."""
    await (await bus.js.key_value(subjects.SCHEDULES)).delete(name)


async def applied_in_the_past(bus: Bus, database: Database, *, every_s: int, hours: int) -> int:
    """Let a ledger that began so long ago know of the schedule `old`, which was removed just now; return how often it was due."""
    now = datetime.now(UTC).replace(microsecond=0)
    schedule = interval("old", every_s, active_since=now - timedelta(hours=hours))
    values = "(1, 'old', 1, $1::timestamptz, $2::jsonb), (2, 'old', 2, $3::timestamptz, null)"
    arguments = (schedule.active_since, schedule.model_dump_json(), now)
    await database.execute(f"INSERT INTO schedule_versions (number, name, revision, since, spec) VALUES {values}", *arguments)
    made_at = (await bus.js.stream_info(f"KV_{subjects.SCHEDULES}")).created
    began_at = schedule.active_since - SECOND
    await database.execute("UPDATE ledger_state SET began_at = $1, settled_until = $1, schedules_made_at = $2", began_at, made_at)
    return hours * 3600 // every_s


async def test_without_runners_every_run_is_missed(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """A site that never had a runner is told from one whose runner is away, and a run asked for by hand ends, too."""
    recorder = start("recorder", database_url, **QUICK)
    start("scheduler")
    await bus.put(interval("fast", 1, sites=("home", "office")))
    asked = await bus.tick(expires_in_s=1)

    async def both() -> bool:
        found = await kinds(database, "fast")
        return found["no_runner"] >= 2 and found["runner_offline"] >= 2

    await until(both)
    rows = await database.fetch(
        "SELECT site, failure_kind, status, started_at, trigger, due_at, schedule, run_id FROM results WHERE schedule IS NOT NULL"
    )
    assert {(row["site"], row["failure_kind"]) for row in rows} == {("home", "runner_offline"), ("office", "no_runner")}
    assert {(row["status"], row["started_at"]) for row in rows} == {("missed", None)}
    assert all(row["run_id"] == run_id_of("fast", row["site"], row["due_at"]) for row in rows)
    ended = await row_of(database, asked.run_id)
    assert (ended["trigger"], ended["status"], ended["failure_kind"]) == ("manual", "missed", "runner_offline")
    await remove(bus, "fast")
    assert (await until_settled(database)).due == await database.fetchval("SELECT count(*) FROM results")
    settled = [recorder.metric(f'refresher_runs_settled_total{{reason="{kind}"}}') for kind in ("no_runner", "runner_offline")]
    assert sum(settled) == await bus.count(subjects.RESULTS) == await database.fetchval("SELECT count(*) FROM results")


async def test_without_schedulers_every_instant_has_one_row(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """All are killed and come back: what they did not publish says so, what they did was run, and the last is caught up."""
    start("recorder", database_url, **QUICK)
    start("runner")
    schedulers = [start("scheduler"), start("scheduler")]
    await bus.put(interval("fast", 1))
    await until(lambda: database.fetchval("SELECT count(*) >= 2 FROM results"))
    for scheduler in schedulers:
        scheduler.kill()

    async def noticed() -> bool:
        return (await kinds(database))["scheduler_down"] >= 2

    await until(noticed)
    before = (await kinds(database))[None]
    for scheduler in schedulers:
        scheduler.start()

    async def goes_on() -> bool:
        return (await kinds(database))[None] >= before + 2

    await until(goes_on, 30)
    await remove(bus, "fast")
    found = await until_settled(database)
    due = await due_of(database, "fast")
    assert found.rows == len(due) >= 6
    assert all(later - earlier == SECOND for earlier, later in pairwise(due)), "one for each second"
    assert set(await kinds(database)) - {"expired"} == {None, "scheduler_down"}, "one of a second expires when the next starts"


async def test_what_a_scheduler_may_still_catch_up_waits_for_it(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """With catch-up of everything nothing is given up while no scheduler is there; with the latest, all but that one is."""
    start("recorder", database_url, **QUICK)
    start("runner")
    await bus.put(interval("everything", 1, catch_up="all"))
    await bus.put(interval("latest", 1))
    await bus.put(interval("rare", 3600, active_since=datetime.now(UTC) - timedelta(hours=1)))

    async def some() -> bool:
        return (await kinds(database, "latest"))["scheduler_down"] >= 2

    await until(some)
    assert not await kinds(database, "everything")
    start("scheduler")

    async def caught_up() -> bool:
        return (await kinds(database, "everything"))[None] >= 4

    await until(caught_up)
    for name in ("everything", "latest", "rare"):
        await remove(bus, name)
    await until_settled(database)
    assert set(await kinds(database, "everything")) - {"expired"} == {None}, "one of a second expires when the next starts"
    assert await kinds(database, "rare") == {None: 1}, "what was caught up when it was stored is allowed, and asked of nobody"


async def test_the_past_follows_the_schedule_as_it_then_was(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """Edited, paused, resumed, broken by hand, removed and made again: each moment by the version that applied then."""
    applied: list[tuple[datetime, int]] = []

    async def put(every_s: int, **fields: Any) -> None:
        await bus.put(interval("changing", every_s, **fields))
        applied.append((datetime.now(UTC), every_s if fields.get("enabled", True) else 0))
        await asyncio.sleep(every_s + 0.1)  # the time that passes is what is looked at

    bucket = await bus.js.key_value(subjects.SCHEDULES)
    await put(1)
    recorder = start("recorder", database_url, **QUICK)
    await put(1, enabled=False)
    await put(1)
    await bucket.put("changing", b'{"name": "changing", "timing": "\\u0000"}')
    applied.append((datetime.now(UTC), 0))
    for key in ("not/a.name=", "\\x00", "misnamed"):
        await bus.js.publish(
            f"$KV.{subjects.SCHEDULES}.{key}", b"\xff\x00" if key != "misnamed" else interval("other", 1).model_dump_json().encode()
        )
    await asyncio.sleep(1.1)
    await put(2)
    await remove(bus, "changing")
    applied.append((datetime.now(UTC), 0))
    await asyncio.sleep(1.1)
    recorder.kill()
    await put(1)
    await remove(bus, "changing")
    applied.append((datetime.now(UTC), 0))
    recorder.start()
    await until_settled(database)
    found = set(await due_of(database, "changing"))
    moment = applied[0][0].replace(microsecond=0)
    while (moment := moment + SECOND) <= applied[-1][0]:
        every_s = [every_s for since, every_s in applied if since <= moment][-1]
        is_near = any(abs(since - moment) < timedelta(milliseconds=100) for since, _ in applied)
        assert is_near or (moment in found) == bool(every_s and int(moment.timestamp()) % every_s == 0), moment
    assert len(found) >= 4
    assert set(await kinds(database)) == {"scheduler_down"}


async def test_what_a_change_kept_from_starting_says_so(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """An instant that was due before a pause and was to start after it, which no scheduler runs: one row, and what was done."""
    now = datetime.now(UTC).replace(microsecond=0)
    made = interval("spread", 60, active_since=now - LONG).model_copy(update={"spread_s": 59})
    due_at = next(instants(made, "home", now - timedelta(minutes=9)))
    paused_at = due_at + (start_of(made, "home", due_at) - due_at) / 2
    values = "(1, 'spread', 1, $1::timestamptz, $2::jsonb), (2, 'spread', 2, $3::timestamptz, $4::jsonb)"
    paused = made.model_copy(update={"enabled": False}).model_dump_json()
    arguments = (made.active_since, made.model_dump_json(), paused_at, paused)
    await database.execute(f"INSERT INTO schedule_versions (number, name, revision, since, spec) VALUES {values}", *arguments)
    made_at = (await bus.js.stream_info(f"KV_{subjects.SCHEDULES}")).created
    began_at = due_at - timedelta(minutes=3)
    await database.execute("UPDATE ledger_state SET began_at = $1, settled_until = $1, schedules_made_at = $2", began_at, made_at)
    recorder = start("recorder", database_url, **QUICK)
    await until_settled(database)
    found = await row_of(database, run_id_of("spread", "home", due_at))
    assert (found["status"], found["failure_kind"], found["start_at"]) == ("missed", "changed", start_of(made, "home", due_at))
    assert f"was paused at {paused_at:%Y-%m-%d %H:%M:%S} UTC, before" in found["failure_message"]
    assert [due_at for due_at in await due_of(database, "spread") if due_at >= paused_at] == []
    assert (await kinds(database))["changed"] == 1
    assert recorder.metric('refresher_runs_settled_total{reason="changed"}') == 1


async def test_what_is_noted_of_an_instant_is_the_most_that_is_known(database: Database) -> None:
    """One that may have been published, and then must have been; one that an earlier version withdrew and a later one starts."""
    made, due_at = interval("twice", 60), datetime.now(UTC).replace(microsecond=0)
    maybe = Due(made, "home", due_at, due_at, is_certain=False)
    withdrawn, run = replace(maybe, is_certain=True, withdrawn="the schedule was paused"), replace(maybe, is_certain=True)

    async def noted(*found: Due) -> Any:
        await open_runs.open_up(database, found, due_at)
        return await database.fetchval("SELECT (is_certain, withdrawn) FROM open_runs")

    assert await noted(maybe) == (False, None)
    assert await noted(withdrawn, maybe) == (True, "the schedule was paused")
    assert await noted(maybe) == (True, "the schedule was paused")
    await database.execute("DELETE FROM open_runs")
    assert await noted(run, withdrawn, maybe) == (True, None)


async def test_a_late_result_takes_the_place_of_a_guess(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """In whatever order they come, together or one after the other, and never the other way round."""
    recorder = start("recorder", database_url)
    due_at = datetime.now(UTC).replace(microsecond=0)
    scheduled = {"trigger": "schedule", "due_at": due_at, "run_id": run_id_of("hourly", "home", due_at)}
    guess = {"status": Status.MISSED, "started_at": None, "runner": None, "measurement": None}
    guess["failure"] = Failure(kind="runner_offline", message="nobody was there")
    late = [a_result(run_id=uuid4()) for _ in range(3)]
    guesses = [a_result(**{**vars(each), **guess}) for each in late]
    await publish(bus, a_result(**scheduled, **guess))
    assert (await row_of(database, scheduled["run_id"]))["status"] == "missed"  # type: ignore[arg-type]
    await publish(
        bus, a_result(**scheduled), guesses[0], late[0], late[1], guesses[1], late[2], late[2], guesses[2], a_result(**scheduled, **guess)
    )
    await until(lambda: database.fetchval("SELECT count(*) = 4 AND bool_and(status = 'succeeded') FROM results"))
    (row,) = await database.fetch("SELECT * FROM results WHERE run_id = $1", scheduled["run_id"])
    assert (row["runner"], row["failure_kind"], row["failure_message"], row["download_bps"]) == ("runner-1", None, None, 93.4e6)

    async def counted() -> bool:
        outcomes = [recorder.metric(f'refresher_results_total{{outcome="{outcome}"}}') for outcome in ("stored", "duplicate")]
        return sum(outcomes) == 10 and outcomes[0] >= 5

    await until(counted)


async def test_a_run_that_goes_on_and_one_whose_result_was_lost(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """While a runner measures nothing is decided, however late it is; a tick that was taken and left no result is told apart."""
    start("recorder", database_url, **QUICK)
    async with Pull(bus.client, bus.js, subjects.TICKS, "runner-home", batch=1, group=PIN_GROUP) as pull:
        taken = await bus.tick(expires_in_s=0.5)
        (message,) = await pull.next()
        await message.ack_sync()
    assert (await row_of(database, taken.run_id))["failure_kind"] == "lost"
    start("runner")
    slow = await bus.tick(seconds=3, expires_in_s=0.5)
    await row_of(database, slow.run_id)
    results = [message.data for message in await bus.messages(subjects.RESULTS)]
    assert len(results) == 2
    assert (await until_settled(database)).rows == 2


async def test_two_recorders_share_the_work(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """Each gap is closed by one of them; one that is killed at it is replaced by the other."""
    one, other = start("recorder", database_url, **QUICK), start("recorder", database_url, **QUICK)
    await bus.put(interval("fast", 1, sites=("home", "office")))
    await until(lambda: database.fetchval("SELECT count(*) >= 2 FROM results"))
    one.kill()  # with a row in its hands that only comes again after `ack_wait`: nothing is decided until then
    await until(lambda: database.fetchval("SELECT count(*) >= 6 FROM results"), 2 * ACK_WAIT_S)
    await remove(bus, "fast")
    assert (await until_settled(database, 2 * ACK_WAIT_S)).rows == await bus.count(subjects.RESULTS)
    assert other.metric('refresher_runs_settled_total{reason="scheduler_down"}') >= 2


async def test_days_without_a_recorder_are_worked_through(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """More than fits into a piece, from before any tick that is left; what is recorded meanwhile does not wait for it."""
    number = await applied_in_the_past(bus, database, every_s=10, hours=30)
    recorder = start("recorder", database_url, **QUICK)
    await until(lambda: database.fetchval("SELECT count(*) > 500 FROM results"), 30)
    result = a_result()
    await publish(bus, result)
    await until(lambda: database.fetchval("SELECT true FROM results WHERE run_id = $1", result.run_id), 3)
    assert await database.fetchval("SELECT count(*) FROM results") < number, "it was stored while the gaps were being closed"
    await until(lambda: database.fetchval("SELECT count(*) = $1 FROM results", number + 1), 60)
    assert set(await kinds(database, "old")) <= {"lost", "scheduler_down"}
    slow = recorder.metric("refresher_loop_lag_seconds_count") - recorder.metric('refresher_loop_lag_seconds_bucket{le="0.5"}')
    assert slow <= 1


async def test_a_clock_that_was_wrong_leaves_no_gap(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """A recorder whose clock was years ahead has seen the future; once it is set, what happens there is looked at again."""
    future = datetime.now(UTC) + timedelta(days=3_000)
    await database.execute("UPDATE ledger_state SET began_at = $1, settled_until = $1", future)
    start("recorder", database_url, **QUICK)
    await bus.put(interval("fast", 1))
    await until(lambda: database.fetchval("SELECT count(*) >= 1 FROM results"))


async def test_a_bucket_that_is_made_anew_ends_what_was_in_it(
    bus: Bus, start: Start, database_url: str, database: Database, nats_server: Nats
) -> None:
    """Revisions count from one again: they are not taken for those that are known, and what is gone is due no more."""
    start("recorder", database_url, **QUICK)
    await bus.put(interval("gone", 1))
    await bus.put(interval("kept", 1))
    await until(lambda: database.fetchval("SELECT count(*) = 2 FROM schedule_versions"))
    await bus.js.delete_stream(f"KV_{subjects.SCHEDULES}")
    await provision(bus.js)
    await bus.put(interval("kept", 2))
    await until(lambda: database.fetchval("SELECT count(*) = 3 FROM schedule_versions WHERE name = 'kept'"))
    last = await database.fetchrow("SELECT revision, spec FROM schedule_versions WHERE name = 'gone' ORDER BY number DESC LIMIT 1")
    assert (last["revision"], last["spec"]) == (None, None)
    await remove(bus, "kept")
    await until_settled(database)


async def test_streams_that_were_put_back_to_an_earlier_state_are_read_anew(
    bus: Bus, start: Start, database_url: str, database: Database, nats_server: Nats
) -> None:
    """As by a snapshot of the server's disk: they are as old as before, and shorter than what was read of them."""
    start("recorder", database_url, **QUICK)
    await bus.put(interval("removed", 1))
    await until(lambda: database.fetchval("SELECT count(*) = 1 FROM schedule_versions"))
    store = nats_server.configuration.parent / "nats"
    kept = store.with_name("kept")
    nats_server.kill()
    shutil.copytree(store, kept)
    nats_server.start()
    await until(lambda: answers(bus), 20)
    await remove(bus, "removed")
    ticks = [await bus.tick(expires_in_s=0) for _ in range(3)]
    await until(lambda: database.fetchval("SELECT count(*) = 3 FROM asked_runs"), 20)
    nats_server.kill()
    shutil.rmtree(store)
    kept.rename(store)
    nats_server.start()
    await until(lambda: answers(bus), 20)
    asked = await bus.tick(expires_in_s=0)
    await until(lambda: database.fetchval("SELECT true FROM results WHERE run_id = $1", asked.run_id), 20)
    await until(lambda: database.fetchval("SELECT count(*) = 2 FROM schedule_versions WHERE spec IS NOT NULL"), 20)
    await remove(bus, "removed")
    await until_settled(database)
    assert await database.fetchval("SELECT count(*) FROM results WHERE run_id = ANY($1)", [tick.run_id for tick in ticks]) == 3


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_database_that_was_put_back_gets_its_results_again(
    bus: Bus, start: Start, database_url: str, database: Database, *, restarted: bool
) -> None:
    """As from a copy: what was acknowledged since is read once more, and not taken for lost. What was put aside stays that."""
    await database.execute("ALTER TABLE results ADD CHECK (engine <> 'forbidden')")
    recorder = start("recorder", database_url, **QUICK)
    await publish(bus, a_result(engine="forbidden"))
    await until(lambda: bus.count(subjects.DEAD))
    before, after = await bus.tick(), await bus.tick()
    start("runner")
    await until(lambda: database.fetchval("SELECT count(*) = 2 FROM results"))
    state = "settled_until, schedules_sequence, ticks_sequence, results_sequence"
    await until(lambda: database.fetchval("SELECT results_sequence = 3 FROM ledger_state"))
    if restarted:
        recorder.stop()
    async with database.transaction():
        (old,) = await database.fetch(f"SELECT {state} FROM ledger_state")
        await database.execute(f"DROP TABLE results_{after.due_at:%Y_%m}")
        await database.execute("DELETE FROM asked_runs WHERE run_id = $1", after.run_id)
        await database.execute(
            f"UPDATE ledger_state SET ({state}) = ROW($1, $2, $3, 0)",
            *(old["settled_until"] - timedelta(minutes=1), old["schedules_sequence"], old["ticks_sequence"] - 1),
        )
    if restarted:
        recorder.start()
    await until(lambda: database.fetchval("SELECT count(*) = 2 FROM results"), 20)
    await until_settled(database)
    rows = await database.fetch("SELECT run_id, status FROM results ORDER BY due_at")
    assert [tuple(row) for row in rows] == [(before.run_id, "succeeded"), (after.run_id, "succeeded")]
    assert "were not in the database" in recorder.log.read_text()


async def test_a_standby_that_was_behind_gets_what_it_lacks(bus: Bus, start: Start, open_directory: Path) -> None:
    """It is another server: though it knows of as much as was looked at last, what was acknowledged since then is read once more."""
    with running(Postgres(open_directory)) as server:
        assert isinstance(server, Postgres)
        recorder = start("recorder", server.url, **QUICK | {"REFRESHER_RECORDER_SETTLE_EVERY_S": "3"})
        start("runner")
        ticks = [await bus.tick()]
        database = await asyncpg.connect(server.url)
        await until(lambda: database.fetchval("SELECT results_sequence = 1 FROM ledger_state"))
        ticks.append(await bus.tick())
        await until(lambda: database.fetchval("SELECT count(*) = 2 FROM results"))
        recorder.process.send_signal(signal.SIGSTOP)  # between two looks
        await database.execute("DELETE FROM results WHERE run_id = $1", ticks[1].run_id)
        await database.execute("UPDATE ledger_state SET results_sequence = 1")
        await database.close()
        server.stop()
        server.start()
        recorder.process.send_signal(signal.SIGCONT)
        database = await asyncpg.connect(server.url)
        await until(lambda: database.fetchval("SELECT count(*) = 2 FROM results WHERE status = 'succeeded'"), 20)
        await database.close()


async def answers(bus: Bus) -> bool:
    """Return whether the server is there again."""
    try:
        await bus.js.stream_info(subjects.TICKS)
    except NATS_AWAY:
        return False
    return True


async def test_a_schedule_that_reaches_past_the_calendar_ends_nothing(
    bus: Bus, start: Start, database_url: str, database: Database, nats_server: Nats, tmp_path: Path
) -> None:
    """One in the bucket, one in the history already: scheduler, recorder, API and audit go on, and it is told that they are invalid."""
    period = {"kind": "period", "from": "2026-01-01T00:00:00Z", "to": "9999-12-31T23:59:59Z"}
    holiday = {"timing": {"kind": "interval", "every_s": 60}, "exclusions": [period], "engine": "noop"}
    stored = json.dumps({**holiday, "name": "holiday", "active_since": "2026-01-02T00:00:00Z"})
    scheduler, recorder, _ = start("scheduler"), start("recorder", database_url, **QUICK), start("runner")
    await bus.put(interval("good", 1))
    await until(lambda: database.fetchval("SELECT EXISTS (SELECT FROM results) AND EXISTS (SELECT FROM schedule_versions)"))
    now = datetime.now(UTC)
    columns, values = "number, name, revision, since, spec", "max(number) + 1, 'old', 1, $1, $2"
    sql = f"INSERT INTO schedule_versions ({columns}) SELECT {values} FROM schedule_versions"
    await database.execute(sql, now, stored.replace("holiday", "old"))
    await (await bus.js.key_value(subjects.SCHEDULES)).put("holiday", stored.encode())
    number = await database.fetchval("SELECT count(*) FROM results")
    await until(lambda: database.fetchval("SELECT count(*) >= $1 FROM results", number + 5))
    await until(lambda: database.fetchval("SELECT settled_until > $1 FROM ledger_state", now + 4 * SECOND))
    await until(lambda: database.fetchval("SELECT true FROM schedule_versions WHERE name = 'holiday' AND spec IS NULL"))
    assert [scheduler.process.poll(), recorder.process.poll()] == [None, None]
    assert scheduler.metric('refresher_schedules{state="invalid"}') == 1
    with api_server(nats_server.url, database_url, tmp_path) as api:
        async with api.client() as client:
            listed = (await client.get("/api/v1/schedules")).json()
            assert [each["name"] for each in listed["items"]] == ["good"]
            (told,) = listed["invalid"]
            assert told["name"] == "holiday"
            assert "outside of the years 1970 to 2199" in told["reason"]
            refused = await client.post("/api/v1/schedules", json={**holiday, "name": "other"})
            assert (refused.status_code, "outside of the years" in refused.text) == (422, True)
            assert (await client.get("/api/v1/schedules/other")).status_code == 404
            assert (await client.get("/api/v1/audit")).json()["missing"]["count"] == 0
    await remove(bus, "good")
    await until_settled(database)


async def test_a_site_that_was_cut_off_may_go_by_an_older_version(database: Database) -> None:
    """What it measures after a pause that it does not know of is expected there, and of no other site, and of no other instant."""
    now = datetime.now(UTC).replace(second=30, microsecond=0) - timedelta(minutes=1)  # no instant itself
    since, paused_at = now - 6 * LONG, now - 2 * LONG
    made = interval("steady", 600, sites=("office", "home"), active_since=since)
    versions = "(1, 'steady', 1, $1::timestamptz, $2::jsonb), (2, 'steady', 2, $3::timestamptz, null)"
    await database.execute(
        f"INSERT INTO schedule_versions (number, name, revision, since, spec) VALUES {versions}", since, made.model_dump_json(), paused_at
    )
    await database.execute("UPDATE ledger_state SET began_at = $1, settled_until = $2", since, now)

    async def measured(site: str, due_at: datetime) -> UUID:
        (run_id,) = await insert(database, row(due_at, site=site, schedule="steady", run_id=run_id_of("steady", site, due_at)))
        return run_id

    for site in made.sites:
        for due_at in takewhile(lambda due_at: due_at < paused_at, instants(made, site, since)):
            await measured(site, due_at)
    after = {site: next(instants(made, site, paused_at + 60 * SECOND)) for site in made.sites}
    at_office, at_home = [await measured(site, due_at) for site, due_at in after.items()]
    at_no_instant = await measured("office", after["office"] + SECOND)
    assert (await audit(database, since, now, now=now)).unexpected.count == 3
    await open_runs.note_leaves(database, {"attic", "office"})
    await open_runs.note_leaves(database, {"attic", "barn"})
    found = await audit(database, since, now, now=now)
    assert {run.run_id for run in found.unexpected.first} == {at_home, at_no_instant}
    assert (found.missing.count, found.duplicated.count, found.rows) == (0, 0, found.due + 3)
    await database.execute("UPDATE results SET run_id = gen_random_uuid() WHERE run_id = $1", at_office)
    assert (await audit(database, since, now, now=now, site="office")).unexpected.count == 2, "it has the id of no run of that schedule"


async def test_an_audit_finds_what_somebody_did_by_hand(
    bus: Bus, start: Start, database_url: str, database: Database, nats_server: Nats, tmp_path: Path
) -> None:
    """A row deleted, a row made up, a second row of an instant: in the API, at the command line and in the metrics; else nothing."""
    due = await applied_in_the_past(bus, database, every_s=60, hours=1) + 1
    past = datetime.now(UTC) - timedelta(minutes=30)
    asked = await bus.tick(tick={"due_at": past, "expires_at": past + SECOND})
    recorder = start("recorder", database_url, **QUICK)
    assert (await until_settled(database)).due == due
    with api_server(nats_server.url, database_url, tmp_path) as api:
        refresher = Refresher(REFRESHER_API_URL=api.url)
        nothing = {"count": 0, "items": []}
        (clean,) = refresher.json("audit")
        assert (clean["due"], clean["rows"], clean["open"]) == (due, due, 0)
        assert clean["missing"] == clean["duplicated"] == clean["unexpected"] == nothing
        with pytest.raises(TooMuch, match="more than 5 runs"):
            await audited(database, at_most=5)
        assert refresher("audit").stdout.splitlines()[-3:] == ["missing\t0", "duplicated\t0", "unexpected\t0"]

        first, second, *_ = await due_of(database, "old")
        await database.execute("DELETE FROM results WHERE due_at = $1", first)
        made_up = (row(second, schedule="old"), row(second, schedule="old", site="mars"), row(past + SECOND, trigger="manual"))
        twin, stranger, manual = await insert(database, *made_up)
        (again,) = await insert(database, row(past + 2 * SECOND, schedule=None, trigger="manual", run_id=asked.run_id))
        (found,) = refresher.json("audit", code=1)
        told = {kind: {UUID(run["run_id"]) for run in found[kind]["items"]} for kind in ("missing", "duplicated", "unexpected")}
        assert told == {"missing": {run_id_of("old", "home", first)}, "duplicated": {twin, again}, "unexpected": {stranger, manual}}
        assert [found[kind]["count"] for kind in told] == [1, 2, 2]
        lines = [line.split("\t") for line in refresher("audit", code=1).stdout.splitlines()]
        assert {(line[0], UUID(line[5])) for line in lines if len(line) == 6 and line[0] in told} == {
            (kind, run_id) for kind, run_ids in told.items() for run_id in run_ids
        }
        (mars,) = refresher.json("audit", "--site", "mars", code=1)
        assert (mars["due"], mars["rows"], mars["unexpected"]["count"]) == (0, 1, 1)
        assert refresher.json("audit", "--schedule", "other")[0]["rows"] == 0
        assert refresher.json("audit", "--from", "2m")[0]["due"] <= 2
        assert "before `to`" in refresher("audit", "--from", "1d", "--to", "2d", code=1).stderr
        assert "31 days" in refresher("audit", "--from", "32d", code=1).stderr

    async def shown() -> bool:
        return [recorder.metric(f"refresher_ledger_{kind}") for kind in told] == [1, 2, 2]

    await until(shown)
