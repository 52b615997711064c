"""What the shipped configuration of NATS refuses: each user does what its service needs, and nothing else."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.embedded.nats import binary
from services.runner.claims import Claims, Whose
from services.runner.offer import Offer
from shared import subjects
from shared.events import ANY, Claim, Tick
from shared.provision import WAITING_AT_MOST, provision, provision_runner
from tests.deployed import Bus, make_secrets
from tests.integration.conftest import until
from tests.services import ServiceProcess

USERS = ("scheduler", "recorder", "api", "runner-home", "runner-office", "runner-office+lte")
TICK = "refresher.tick.home.hourly.1790000000"
RUN = "0b6ef0d44e5a5e0e8a7a0f6b8a3c1d52"
DEAD_LETTERS = (subjects.LIST_DEAD, subjects.GET_DEAD, subjects.REDRIVE_DEAD, subjects.DROP_DEAD)
CREATE = "$JS.API.CONSUMER.CREATE.TICKS.runner-office.refresher.tick.office.>"


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """Start a nats-server as it is shipped, with the sites home and office."""
    server = Bus(tmp_path_factory.mktemp("bus"))
    yield server
    server.stop()


@pytest.fixture
async def admin(bus: Bus) -> Any:
    """Give the person's client, on a server where everything is made."""
    client = await bus.connect("admin")
    await provision(client.jetstream())
    for site, line in (("home", None), ("office", None), ("office", "lte")):
        await provision_runner(client.jetstream(), site, line)
    yield client
    await client.close()


@contextlib.asynccontextmanager
async def heard(client: Client, subject: str) -> Any:
    """Collect what a client hears on a subject until the end of the block; [] when it may not even listen."""
    messages: list[Msg] = []

    async def hear(message: Msg) -> None:
        messages.append(message)

    subscription = await client.subscribe(subject, cb=hear)
    await client.flush()
    yield messages
    await client.flush()  # what was there before this came first
    if not client.is_closed:
        await subscription.unsubscribe()


REQUESTS = (
    # streams and consumers: only the scheduler makes them, and nobody deletes
    *(
        (user, f"$JS.API.STREAM.{verb}.TICKS")
        for user in USERS
        for verb in ("DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT", "LEADER.STEPDOWN")
    ),
    *((user, f"$JS.API.STREAM.{verb}.MINE") for user in USERS if user != "scheduler" for verb in ("CREATE", "UPDATE", "RESTORE")),
    *((user, CREATE) for user in USERS if user != "scheduler"),
    *((user, "$JS.API.CONSUMER.CREATE.TICKS") for user in USERS),
    *((user, "$JS.API.CONSUMER.DURABLE.CREATE.TICKS.runner-office") for user in USERS),
    *((user, "$JS.API.CONSUMER.DELETE.TICKS.runner-office") for user in USERS),
    *((user, "$JS.API.ACCOUNT.PURGE.BUS") for user in USERS),
    # ticks: only the scheduler, and by hand the api
    *((user, TICK) for user in USERS if user != "scheduler"),
    *((user, "refresher.tick.home.manual.run.1") for user in ("recorder", "runner-home", "runner-office")),
    # reading ticks: the runners of their site alone
    *((user, "$JS.API.CONSUMER.MSG.NEXT.TICKS.runner-home") for user in ("scheduler", "recorder", "api", "runner-office")),
    *((user, "$JS.API.CONSUMER.MSG.NEXT.TICKS.runner-office+lte") for user in ("recorder", "api", "runner-home", "runner-office")),
    ("runner-office+lte", "$JS.API.CONSUMER.MSG.NEXT.TICKS.runner-office"),
    *((user, "$JS.API.CONSUMER.UNPIN.TICKS.runner-home") for user in ("scheduler", "recorder", "api", "runner-office")),
    ("runner-office", "$JS.API.CONSUMER.UNPIN.TICKS.runner-office+lte"),
    ("runner-office+lte", "$JS.ACK.TICKS.runner-office.1.1.1.1.0"),
    *((user, "$JS.API.CONSUMER.INFO.TICKS.runner-home") for user in ("api", "runner-office")),
    *((user, "$JS.API.STREAM.MSG.GET.TICKS") for user in ("scheduler", "api", "runner-home", "runner-office")),
    *((user, "$JS.API.DIRECT.GET.TICKS.refresher.tick.home.>") for user in USERS),
    *((user, "$JS.ACK.TICKS.runner-home.1.1.1.1.0") for user in ("scheduler", "recorder", "api", "runner-office")),
    # which line has a run that any may measure: the runners of its site say so, and read it; the recorder reads it too
    *((user, f"refresher.claim.home.{RUN}.has") for user in ("scheduler", "recorder", "api", "runner-office", "runner-office+lte")),
    *((user, f"refresher.claim.home.{RUN}.wants") for user in ("scheduler", "recorder", "api", "runner-office")),
    *(
        (user, f"$JS.API.DIRECT.GET.CLAIMS.refresher.claim.home.{RUN}.has")
        for user in ("scheduler", "recorder", "api", "runner-office", "runner-office+lte")
    ),
    ("runner-office", "$JS.API.DIRECT.GET.CLAIMS.refresher.claim.>"),
    *((user, "$JS.API.DIRECT.GET.CLAIMS") for user in USERS),
    *((user, "$JS.API.STREAM.MSG.GET.CLAIMS") for user in USERS if user != "recorder"),
    # results: the runners of their site, and the recorder for them
    *((user, "refresher.result.home.hourly") for user in ("scheduler", "api", "runner-office", "runner-office+lte")),
    *((user, "$JS.API.CONSUMER.MSG.NEXT.RESULTS.recorder") for user in ("scheduler", "api", "runner-home", "runner-office")),
    *((user, "$JS.API.STREAM.MSG.GET.RESULTS") for user in USERS if user != "recorder"),
    *((user, "$JS.ACK.RESULTS.recorder.1.1.1.1.0") for user in ("scheduler", "api", "runner-home", "runner-office")),
    # schedules and runners
    *((user, "$KV.refresher-schedules.hourly") for user in ("scheduler", "recorder", "runner-home", "runner-office")),
    *((user, "$JS.API.DIRECT.GET.KV_refresher-schedules.$KV.refresher-schedules.hourly") for user in ("recorder", "runner-home")),
    *((user, "$JS.API.STREAM.MSG.GET.KV_refresher-schedules") for user in USERS if user != "recorder"),
    *((user, "$JS.API.STREAM.MSG.GET.KV_refresher-runners") for user in USERS),
    *(
        (user, "$JS.API.DIRECT.GET.KV_refresher-runners.$KV.refresher-runners.home.somebody")
        for user in ("scheduler", "runner-home", "runner-office")
    ),
    *((user, "$KV.refresher-runners.home.somebody") for user in ("scheduler", "recorder", "api", "runner-office", "runner-office+lte")),
    # who measures on a line: its own runners
    *((user, "$KV.refresher-lines.home") for user in USERS if user != "runner-home"),
    *((user, "$KV.refresher-lines.office+lte") for user in USERS if user != "runner-office+lte"),
    *((user, "$JS.API.DIRECT.GET.KV_refresher-lines.$KV.refresher-lines.home") for user in USERS if user != "runner-home"),
    # the names of other sites
    *(
        ("runner-office", f"$JS.API.{verb}")
        for verb in ("STREAM.INFO.KV_refresher-runners", "STREAM.INFO.TICKS", "STREAM.NAMES", "STREAM.LIST")
    ),
    *(("runner-office", f"$JS.API.CONSUMER.{verb}.TICKS") for verb in ("LIST", "NAMES")),
    # dead letters of others, consumers of others, questions to services, the server's own
    *((user, "refresher.dead.results") for user in ("scheduler", "api", "runner-home")),
    *((user, "refresher.dead.ticks") for user in ("scheduler", "recorder", "api")),
    *((user, f"$JS.API.STREAM.MSG.{verb}.DEAD") for user in USERS if user != "recorder" for verb in ("GET", "DELETE")),
    *(
        ("recorder", f"$JS.API.STREAM.{request}")
        for request in ("DELETE.DEAD", "PURGE.DEAD", "MSG.DELETE.RESULTS", "MSG.DELETE.ADVISORIES")
    ),
    *((user, subject) for user in ("scheduler", "runner-home", "runner-office") for subject in DEAD_LETTERS),
    *((user, "refresher.provision.home") for user in ("recorder", "api", "runner-office")),
    *((user, "refresher-options.home.noop") for user in USERS if user not in {"api", "runner-home"}),
    *((user, "$SRV.PING") for user in ("scheduler", "recorder", "api", "runner-home")),
    *((user, "$SYS.REQ.SERVER.PING") for user in USERS),
)


@pytest.mark.parametrize("user", USERS)
async def test_what_a_user_may_not_ask(user: str, bus: Bus, admin: Client) -> None:
    """Nobody answers, nothing is stored, and nobody on the bus hears it, however it was meant."""
    mine = [subject for who, subject in REQUESTS if who == user]
    assert len(mine) > 15
    refused: list[str] = []

    async def remember(error: Exception) -> None:
        refused.append(str(error).lower())

    client = await bus.connect(user, error_cb=remember)
    before = await state(admin)
    async with heard(admin, ">") as passed:
        for subject in mine:
            try:
                answer = await client.request(subject, b"", timeout=0.5)
            except nats.errors.NoRespondersError:
                continue
            except nats.errors.TimeoutError:
                assert any("permissions violation" in each and subject.lower() in each for each in refused), f"{subject} was not refused"
            else:
                assert b"JetStream not enabled" in answer.data, f"{subject}: {answer.data!r}"
        await client.flush()
    asked = {message.subject for message in passed}
    assert not asked & set(mine)
    assert await state(admin) == before
    await client.close()


async def state(admin: Client) -> dict[str, Any]:
    """Return what is in every stream and who reads it, as far as it does not change by itself."""
    js = admin.jetstream()
    streams = await js.streams_info()
    return {
        str(stream.config.name): (
            stream.state.last_seq,
            stream.state.messages,
            stream.config,
            {(each.name, str(each.config), str(each.ack_floor)) for each in await js.consumers_info(str(stream.config.name))},
        )
        for stream in streams
    }


HEARS = {
    "scheduler": {"refresher.provision.home", "$SRV.PING"},
    "recorder": {"$SRV.PING"},
    "api": {"refresher.tick.home.hourly.1", "$SRV.PING"},
    "runner-home": {"$SRV.PING"},
    "runner-office": {"$SRV.PING"},
    "runner-office+lte": {"$SRV.PING"},
}
"""What a user hears of what is said in the account of the streams. The api hears results and progress where they are published."""


@pytest.mark.parametrize("user", USERS)
async def test_what_a_user_may_not_hear(user: str, bus: Bus, admin: Client) -> None:
    """Whatever it subscribes to: no tick of another site, no answer to somebody else, no advisory, nothing of the server."""
    said = (
        *("refresher.tick.home.hourly.1", "refresher.result.home.hourly", "refresher.progress.1", "refresher.dead.ticks"),
        *DEAD_LETTERS,
        *("refresher.provision.home", "$KV.refresher-schedules.hourly", "$KV.refresher-runners.home.1", "$SRV.PING"),
        *(f"_INBOX_{other}.abc.def" for other in (*USERS, "admin") if other != user),
        *("_INBOX.abc.def", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.TICKS.runner-home", "$SYS.ACCOUNT.BUS.CONNECT"),
    )
    client = await bus.connect(user, error_cb=_quiet)
    found: set[str] = set()
    async with contextlib.AsyncExitStack() as stack:
        ears = [await stack.enter_async_context(heard(client, subject)) for subject in (">", *said)]
        for subject in said:
            await admin.publish(subject, b"secret")
        await admin.flush()
        await client.flush()
        await asyncio.sleep(0.1)  # nothing to wait for: what does not come does not say so
        found = {message.subject for each in ears for message in each if message.data == b"secret"}
    assert found == HEARS[user]
    await client.close()


async def _quiet(_: Exception) -> None:
    """To be refused is what this is about."""


ANSWERS = (
    ("api", "$JS.API.DIRECT.GET.KV_refresher-schedules.$KV.refresher-schedules.none", b""),
    ("recorder", "$JS.API.CONSUMER.MSG.NEXT.ADVISORIES.recorder", b'{"no_wait": true, "batch": 1}'),
    ("recorder", "$JS.API.STREAM.MSG.GET.KV_refresher-schedules", b'{"seq": 1, "next_by_subj": ">"}'),
    ("recorder", "$JS.API.DIRECT.GET.KV_refresher-runners.$KV.refresher-runners.home.nobody", b""),
    ("recorder", "$JS.API.STREAM.MSG.GET.CLAIMS", b'{"seq": 1, "next_by_subj": ">"}'),
    ("recorder", "$JS.API.STREAM.MSG.GET.RESULTS", b'{"seq": 1, "next_by_subj": ">"}'),
    ("runner-office", f"$JS.API.DIRECT.GET.CLAIMS.refresher.claim.office.{RUN}.has", b""),
    ("runner-office", "$JS.API.DIRECT.GET.KV_refresher-lines.$KV.refresher-lines.office", b""),
    ("recorder", "$JS.API.STREAM.MSG.GET.DEAD", b'{"seq": 1, "next_by_subj": ">"}'),
    ("recorder", "$JS.API.STREAM.MSG.DELETE.DEAD", b'{"seq": 1000000}'),
    ("runner-office", "$JS.API.CONSUMER.MSG.NEXT.TICKS.runner-office", b'{"no_wait": true, "batch": 1}'),
)
"""Requests that each may make. To most of them the server answers with an empty message: that is what deletes a stream."""


@pytest.mark.parametrize(("user", "subject", "question"), ANSWERS)
@pytest.mark.parametrize("target", ["$JS.API.STREAM.DELETE.DEAD", "$JS.API.STREAM.PURGE.DEAD", "$KV.refresher-schedules.hourly", TICK])
async def test_an_answer_cannot_be_sent_where_its_user_may_not_publish(
    user: str, subject: str, question: bytes, target: str, bus: Bus, admin: Client
) -> None:
    """The server does not ask who names the subject of an answer: only another account keeps it away from the streams."""
    js = admin.jetstream()
    for stream in (subjects.TICKS, subjects.ADVISORIES, subjects.CLAIMS):  # a consumer with nothing to hand out says so in an empty message
        await js.purge_stream(stream)
    await js.publish("refresher.dead.ticks", b"a dead letter", headers={"Nats-Msg-Id": str(uuid4())})
    before = await state(admin)
    client = await bus.connect(user)
    async with heard(admin, target) as passed:
        await client.publish(subject, question, reply=target)
        await client.flush()
        # an answer in the ordinary way, after the first was given
        assert await client.request(subject, question, timeout=5)
    assert not passed
    assert await state(admin) == before
    await client.close()


async def test_a_consumer_of_a_site_is_made_on_request_for_that_site_alone(bus: Bus, admin: Client) -> None:
    """What a runner sends along does not matter: the scheduler takes the site from the subject, which the server guards."""
    js = admin.jetstream()
    await js.delete_consumer(subjects.TICKS, "runner-office")
    scheduler = ServiceProcess("scheduler", bus.secrets, bus.url, **bus.login("scheduler"))
    try:
        scheduler.wait_until_ready()
        client = await bus.connect("runner-office")
        await client.request("refresher.provision.office", b'{"site": "home", "deliver_subject": "refresher.tick.home.x.1"}', timeout=5)
        config = (await js.consumer_info(subjects.TICKS, "runner-office")).config
        assert (config.filter_subject, config.deliver_subject, config.max_ack_pending) == ("refresher.tick.office.>", None, WAITING_AT_MOST)
        await client.close()
    finally:
        scheduler.stop()


async def test_lines_of_a_site_claim_its_runs(bus: Bus, admin: Client) -> None:
    """Each may, the first one has it, both see whose it is, and what another site sends first under any id does not matter."""
    now = datetime.now(UTC)
    run = {"run_id": uuid4(), "site": "office", "line": ANY, "trigger": "manual", "engine": "noop", "due_at": now, "published_at": now}
    tick = Tick.model_validate({**run, "expires_at": now + timedelta(hours=1)})
    offers = [Offer(tick, Msg(admin, headers={"Nats-TTL": "777s"})) for _ in range(3)]
    users = {None: "runner-office", "lte": "runner-office+lte"}
    clients = {line: await bus.connect(user) for line, user in users.items()}
    claims = {
        line: Claims(lambda client=client: (client, client.jetstream()), "somebody", ("office", line), ("noop",), ())  # type: ignore[misc]
        for line, client in clients.items()
    }
    assert await claims["lte"].look(offers[0]) is Whose.OPEN
    assert await claims["lte"].take(offers[0]) is Whose.OURS
    assert await claims["lte"].take(offers[1]) is Whose.OURS, "the line's, whichever process asks"
    assert await claims[None].take(offers[2]) is await claims[None].look(offers[2]) is Whose.ANOTHERS
    told = (subjects.claim("office", tick.run_id), subjects.wish("office", tick.run_id))
    found = [await admin.jetstream().get_msg(subjects.CLAIMS, subject=subject) for subject in told]
    for message in found:
        assert Claim.model_validate_json(message.data or b"").line == "lte"
        assert (message.headers or {})["Nats-TTL"] == "777s", "that of the tick"
    assert len({(message.headers or {})["Nats-Msg-Id"] for message in found}) == 2
    for client in clients.values():
        await client.close()


def test_the_shipped_configuration_is_valid(bus: Bus) -> None:
    """nats-server's own check finds nothing."""
    checked = subprocess.run([binary(), "--config", bus.configuration, "-t"], capture_output=True, text=True, timeout=20, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "is valid" in checked.stderr + checked.stdout


def test_a_client_in_the_clear_is_turned_away(bus: Bus) -> None:
    """Whoever waits for the server's greeting hears that TLS is required, and gets no further without."""
    port = int(bus.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), 5) as line, line.makefile("rb") as answers:
        greeting = answers.readline()
        assert json.loads(greeting.removeprefix(b"INFO "))["tls_required"] is True
        login = {"user": "admin", "pass": bus.password("admin"), "verbose": True}
        line.sendall(b"CONNECT " + json.dumps(login).encode() + b"\r\nPING\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"PONG" not in answers.read()


async def test_nobody_in_between_is_told_a_password(bus: Bus, tmp_path: Path) -> None:
    """A server that says it knows no TLS is sent the beginning of a TLS handshake, and no login."""
    received: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id": "x", "version": "2.12.0", "max_payload": 1048576}\r\n')
        received.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(impostor, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    runner = ServiceProcess("runner", tmp_path, url, **bus.login("runner-home"))
    try:

        async def connected() -> bool:
            return bool(received)

        await until(connected)
        assert all(data.startswith(b"\x16\x03") for data in received)  # a TLS record with a handshake
    finally:
        await asyncio.to_thread(runner.stop)
        server.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the secrets of another installation."""
    directory = tmp_path_factory.mktemp("other") / "secrets"
    assert make_secrets(directory).returncode == 0
    return directory


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"REFRESHER_NATS_CA_FILE": ""}, "certificate verify failed"),
        ({"REFRESHER_NATS_CA_FILE": "{other}/ca.crt"}, "certificate verify failed"),
        ({"REFRESHER_NATS_PASSWORD_FILE": "{other}/nats-runner-home"}, "[Aa]uthorization [Vv]iolation"),
        ({"REFRESHER_NATS_USER": "runner-office"}, "[Aa]uthorization [Vv]iolation"),
    ],
    ids=["without the authority", "another authority", "another password", "another user"],
)
async def test_a_runner_that_cannot_prove_itself_or_trust_the_server_stays_out(
    wrong: dict[str, str], complaint: str, bus: Bus, other: Path, tmp_path: Path
) -> None:
    """It does not start to work, and its log says why."""
    told = {name: value.format(other=other) for name, value in wrong.items()}
    runner = ServiceProcess("runner", tmp_path, bus.url, **{**bus.login("runner-home"), **told})
    try:

        async def complained() -> bool:
            return bool(re.search(complaint, runner.log.read_text()))

        await until(complained, 20)
        with pytest.raises(AssertionError, match=r"not ready|ended"):
            runner.wait_until_ready(1)
    finally:
        runner.stop()


async def test_a_new_site_and_a_new_name_are_taken_up_by_a_reload(bus: Bus, admin: Client) -> None:
    """A person adds a site, and the name under which its runner reaches this machine; nobody else is disturbed."""
    context = ssl.create_default_context(cafile=bus.secrets / "ca.crt")
    for words in (("runner", "attic"), ("name", "speed.example.org")):
        made = make_secrets(bus.secrets, *words)
        assert made.returncode == 0, made.stderr
    bus.reload()

    async def comes_in() -> bool:
        try:
            client = await bus.connect("runner-attic", tls=context, tls_hostname="speed.example.org", error_cb=_quiet)
        except (nats.errors.Error, OSError):
            return False
        await client.close()
        return True

    await until(comes_in)
    await provision_runner(admin.jetstream(), "attic")
    runner = await bus.connect("runner-attic")
    await runner.request("$JS.API.CONSUMER.INFO.TICKS.runner-attic", timeout=2)
    await runner.jetstream().publish("refresher.result.attic.often", b"measured")
    await runner.close()
    assert admin.is_connected
    assert admin.stats["reconnects"] == 0
