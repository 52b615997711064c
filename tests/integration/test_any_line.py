"""Runs for any line of a site: which one measures, and that exactly one does, with runners as processes on a real server."""

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from nats.aio.msg import Msg

from services.runner.claims import LEFT_TO_FALLBACK_S, Claims, Whose
from services.runner.offer import Offer
from shared import subjects
from shared.events import ANY, Claim, Result, Status, Tick
from shared.provision import MAX_DELIVERIES, PIN_GROUP, UNPINNED_AFTER_S, provision, provision_runner
from shared.pull import Pull
from shared.runners import Runner
from tests.integration.conftest import Bus, Start, interval, until
from tests.integration.test_ledger import QUICK, until_settled
from tests.integration.test_lines import at_once, busy, kinds, results
from tests.integration.test_recorder import Database, rows
from tests.servers import Nats
from tests.services import ServiceProcess

LINES = ("fibre", "lte")


async def lines(bus: Bus, start: Start, **labels: str) -> dict[str, ServiceProcess]:
    """Start a runner of each line, with these labels."""
    for line in LINES:
        await provision_runner(bus.js, "home", line)
    return {line: start("runner", REFRESHER_LINE=line, REFRESHER_LABELS=labels.get(line, "")) for line in LINES}


async def idle(bus: Bus) -> bool:
    """Return whether every line has been handed all ticks and is done with them."""
    infos = [await bus.js.consumer_info(subjects.TICKS, f"runner-home+{line}") for line in LINES]
    return not any((info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos)


async def claims(bus: Bus, word: str = "has") -> list[Claim]:
    """Return what lines said of runs."""
    return [
        Claim.model_validate_json(message.data) for message in await bus.messages(subjects.CLAIMS) if message.subject.endswith(f".{word}")
    ]


async def claimed(bus: Bus) -> str:
    """Return the line of the only claim, once its runner is busy."""
    await until(lambda: busy(bus))
    (claim,) = await claims(bus)
    return str(claim.line)


def by_line(found: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results of each line."""
    return {line: [result for result in found if result.line == line] for line in LINES}


async def test_each_run_is_measured_once_by_whichever_line_is_free(bus: Bus, start: Start) -> None:
    """Both lines take part, side by side and each one run at a time; what was not a line's is no longer handed to it."""
    await lines(bus, start)
    ticks = [await bus.tick(seconds=0.3, tick={"line": ANY}) for _ in range(20)]
    await until(lambda: idle(bus))
    found = await results(bus, 20)
    assert sorted(result.run_id for result in found) == sorted(tick.run_id for tick in ticks)
    assert kinds(found) == [(Status.SUCCEEDED, None)] * 20
    assert all(len(each) >= 5 and at_once(each) == 0 for each in by_line(found).values())
    assert at_once(found) >= 5
    assert {(claim.run_id, claim.line) for claim in await claims(bus)} == {(result.run_id, result.line) for result in found}


async def test_a_claim_is_the_lines_and_outlives_its_runner(bus: Bus, start: Start) -> None:
    """A runner is killed after its claim: the other line leaves the run alone, and the line's next runner measures it."""
    runners = await lines(bus, start)
    tick = await bus.tick(seconds=3, tick={"line": ANY})
    line = await claimed(bus)
    runners[line].kill()
    following = await bus.tick(tick={"line": ANY})
    (other,) = await results(bus, 1)
    assert (other.run_id, other.line) == (following.run_id, *(set(LINES) - {line}))
    start("runner", REFRESHER_LINE=line)
    found = await results(bus, 2, UNPINNED_AFTER_S + 60)
    assert [(result.run_id, result.line, result.attempt) for result in found[1:]] == [(tick.run_id, line, 2)]
    await until(lambda: idle(bus))
    assert len(await results(bus, 2)) == 2


async def test_a_claim_of_a_line_that_does_not_come_back_ends_as_a_row(
    bus: Bus, start: Start, database_url: str, database: Database
) -> None:
    """Missed, since that line's runner is away; the schedule for any line has a row of every instant meanwhile."""
    runners = await lines(bus, start)
    start("recorder", database_url, **QUICK)
    start("scheduler")
    tick = await bus.tick(seconds=30, expires_in_s=5, tick={"line": ANY})
    line = await claimed(bus)
    runners[line].kill()
    await bus.put(interval("fast", 1, line=ANY))
    # what it was busy with stays in the bucket for 45 s: as if these were over
    bucket = f"KV_{subjects.RUNNERS}"
    for message in await bus.messages(bucket):
        if message.data and Runner.model_validate_json(message.data).run_id == tick.run_id:
            await bus.js.purge_stream(bucket, subject=message.subject)
    row = await until(lambda: database.fetchrow("SELECT * FROM results WHERE run_id = $1", tick.run_id), 20)
    assert (row["status"], row["failure_kind"], row["line"]) == ("missed", "runner_offline", line)
    await until(lambda: database.fetchval("SELECT count(*) >= 5 FROM results WHERE schedule = 'fast'"))
    await (await bus.js.key_value(subjects.SCHEDULES)).delete("fast")
    assert (await until_settled(database)).due >= 6
    for message in await bus.messages(subjects.CLAIMS):
        claim = Claim.model_validate_json(message.data)
        of_tick = [each for each in await bus.messages(subjects.TICKS) if Tick.model_validate_json(each.data).run_id == claim.run_id]
        assert [(each.headers or {}).get("Nats-TTL") for each in of_tick] == [(message.headers or {}).get("Nats-TTL")], "kept as long"
    ended = await database.fetch("SELECT DISTINCT status, line FROM results WHERE schedule = 'fast'")
    assert [tuple(each) for each in ended] == [("succeeded", *(set(LINES) - {line}))]


async def test_what_no_line_claimed_in_time_is_missed_once(bus: Bus, start: Start) -> None:
    """One of the lines says so when it is too late, and no row names a line that did not measure."""
    await lines(bus, start)
    for line in LINES:
        await bus.tick(seconds=5, tick={"line": line})
    await until(lambda: busy(bus, 2))
    late = [await bus.tick(expires_in_s=1.5, tick={"line": ANY}) for _ in range(5)]
    found = await results(bus, 7)
    await until(lambda: idle(bus))
    assert len(await results(bus, 7)) == 7
    assert {result.run_id for result in found[:5]} == {tick.run_id for tick in late}
    assert kinds(found[:5]) == [(Status.MISSED, "expired")] * 5
    assert {result.line for result in found[:5]} == {ANY}
    assert found[0].failure
    assert "no line of site home was free until" in found[0].failure.message


async def test_a_busy_line_forgets_what_another_one_has(bus: Bus, start: Start) -> None:
    """Within seconds, not when it is free again: so many ticks it may hold, and what is its own needs the room."""
    await lines(bus, start)
    await bus.tick(seconds=15, tick={"line": "lte"})
    await until(lambda: busy(bus))
    for _ in range(3):
        await bus.tick(tick={"line": ANY})
    await results(bus, 3, 5)

    async def forgotten() -> bool:
        return (await bus.js.consumer_info(subjects.TICKS, "runner-home+lte")).num_ack_pending == 1

    await until(forgotten, 9)
    assert len(await results(bus, 3)) == 3


async def test_a_line_leaves_what_it_cannot_measure_to_one_that_can(bus: Bus, start: Start) -> None:
    """Be that one busy for long; what none can measure fails after a while, and what a line leaves does not keep it busy."""
    await lines(bus, start, lte="fast")
    blocked = await bus.tick(seconds=LEFT_TO_FALLBACK_S + 5, tick={"line": "lte"})
    await until(lambda: busy(bus))
    fast = await bus.tick(tick={"line": ANY, "labels": ["fast"]})
    nowhere = await bus.tick(tick={"line": ANY, "labels": ["nowhere"]})
    exotic = await bus.tick("teleport", tick={"line": ANY})
    saved = await bus.tick("teleport", tick={"line": ANY, "fallback": {"engine": "noop"}})
    both = [await bus.tick(seconds=0.01, tick={"line": "fibre", "overlap": "skip"})]
    await results(bus, 1)
    both.append(await bus.tick(seconds=0.01, tick={"line": "fibre", "overlap": "queue_one"}))
    found = await results(bus, 7, LEFT_TO_FALLBACK_S + 20)
    ended = {result.run_id: result for result in found}
    assert [result.run_id for result in found] == [
        *(tick.run_id for tick in both),
        saved.run_id,
        *(result.run_id for result in found[3:5]),
        blocked.run_id,
        fast.run_id,
    ]
    assert kinds([ended[tick.run_id] for tick in (*both, saved, nowhere, exotic, fast)]) == [
        *[(Status.SUCCEEDED, None)] * 3,
        *((Status.FAILED, "no_label"), (Status.FAILED, "no_engine"), (Status.SUCCEEDED, None)),
    ]
    assert [ended[tick.run_id].line for tick in (saved, nowhere, exotic, fast)] == ["fibre", ANY, "fibre", "lte"]
    assert ended[saved.run_id].fallback_for == "teleport"
    failure = ended[nowhere.run_id].failure
    assert failure
    assert failure.message == "no line of site home that is there has the label 'nowhere'; REFRESHER_LABELS gives it"
    await until(lambda: idle(bus))


async def test_a_line_goes_on_with_its_own_while_nothing_can_be_claimed(bus: Bus, start: Start) -> None:
    """What any line may measure waits for the bus to say whose it is, and is measured then."""
    await lines(bus, start)
    await bus.js.delete_stream(subjects.CLAIMS)
    waiting = [await bus.tick(tick={"line": ANY}) for _ in range(20)]
    own = [await bus.tick(seconds=0.01, tick={"line": line}) for line in LINES]
    assert {result.run_id for result in await results(bus, 2)} == {tick.run_id for tick in own}
    await provision(bus.js)
    found = await results(bus, 22, 30)
    await until(lambda: idle(bus))
    assert {result.run_id for result in found[2:]} == {tick.run_id for tick in waiting}
    assert len(await results(bus, 22)) == 22


async def test_a_bus_that_is_silent_is_not_asked_for_every_run(bus: Bus, nats_server: Nats) -> None:
    """What a line has of its own must not wait for the answers about a hundred others; after a while they are asked about again."""
    offer = Offer(await bus.tick(tick={"line": ANY}), Msg(bus.client))
    claims = Claims(lambda: (bus.client, bus.js), "somebody", ("home", "lte"), ("noop",), ())
    nats_server.process.send_signal(signal.SIGSTOP)
    try:
        assert await claims.take(offer) is Whose.OPEN
        before = time.monotonic()
        assert await claims.take(offer) is await claims.look(offer) is Whose.OPEN
        assert time.monotonic() - before < 0.5
    finally:
        nats_server.process.send_signal(signal.SIGCONT)

    async def ours() -> bool:
        return await claims.take(offer) is Whose.OURS

    await until(ours)


async def give_up(bus: Bus, line: str) -> None:
    """Have the only tick of a line delivered as often as it may be."""
    async with Pull(bus.client, bus.js, subjects.TICKS, f"runner-home+{line}", batch=1, group=PIN_GROUP) as pull:
        for _ in range(MAX_DELIVERIES):
            (message,) = await pull.next()
            await message.nak()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pull.next(), 0.5)  # the server notices when somebody asks for more


async def test_a_line_gives_up_no_run_of_another(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """All lines of a site are handed its ticks; one that does not even look at them says nothing of a run."""
    await bus.tick(tick={"line": "lte"})
    sequence = (await bus.js.stream_info(subjects.TICKS)).state.last_seq
    start("recorder", database_url)
    advisory = {"stream": subjects.TICKS, "consumer": "runner-home+fibre", "stream_seq": sequence, "deliveries": MAX_DELIVERIES}
    await bus.js.publish(subjects.EXHAUSTED.replace(">", "runner-home+fibre"), json.dumps(advisory).encode())

    async def settled() -> bool:
        info = await bus.js.consumer_info(subjects.ADVISORIES, subjects.RECORDER)
        return info.ack_floor is not None and info.ack_floor.stream_seq == 1

    await until(settled)
    assert await bus.count(subjects.RESULTS) == 0


async def test_only_the_line_that_has_a_run_can_give_it_up(bus: Bus, start: Start, database_url: str, database: Database) -> None:
    """Of a run that a line cannot finish a failed row tells; what becomes of it at the other lines does not matter."""
    for runner in (await lines(bus, start)).values():
        runner.stop()
    tick = await bus.tick(tick={"line": ANY})
    start("recorder", database_url)
    await give_up(bus, "lte")

    async def settled() -> bool:
        info = await bus.js.consumer_info(subjects.ADVISORIES, subjects.RECORDER)
        return info.ack_floor is not None and info.ack_floor.stream_seq == await bus.count(subjects.ADVISORIES)

    await until(settled)
    assert await bus.count(subjects.ADVISORIES) == 1
    assert await bus.count(subjects.RESULTS) == 0
    claim = Claim(run_id=tick.run_id, site="home", line="fibre", runner="somebody", at=datetime.now(UTC))
    await bus.js.publish(subjects.claim("home", tick.run_id), claim.to_json())
    await give_up(bus, "fibre")
    await until(rows(database, 1))
    row = await database.fetchrow("SELECT * FROM results")
    assert (row["run_id"], row["status"], row["failure_kind"], row["line"]) == (tick.run_id, "failed", "abandoned", "fibre")
