"""Fixtures for what talks over the bus."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from shared import subjects
from shared.events import Tick
from shared.publish import publish_until_stored
from shared.schedules import Interval, Schedule
from tests import debian
from tests.servers import Nats
from tests.services import ServiceProcess

T = TypeVar("T")


async def until(condition: Callable[[], Awaitable[T]], deadline_s: float = 15) -> T:
    """Wait until `condition` returns something true and return that."""
    end = time.monotonic() + deadline_s
    while True:
        if found := await condition():
            return found
        assert time.monotonic() < end, f"it did not happen within {deadline_s} s"
        await asyncio.sleep(0.05)


class Bus:
    """A client of this test's NATS server, with what tests do on it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.js: JetStreamContext = client.jetstream(timeout=5)

    async def put(self, schedule: Schedule) -> None:
        """Store a schedule."""
        bucket = await self.js.key_value(subjects.SCHEDULES)
        await bucket.put(schedule.name, schedule.model_dump_json().encode())

    async def tick(
        self,
        engine: str = "noop",
        *,
        run_id: UUID | None = None,
        expires_in_s: float = 600,
        tick: dict[str, Any] | None = None,
        **options: Any,
    ) -> Tick:
        """Publish a manual tick of the site `home`, with these fields and options of the engine."""
        now = datetime.now(UTC)
        fields: dict[str, Any] = {
            "run_id": run_id or uuid4(),
            "site": "home",
            "trigger": "manual",
            "engine": engine,
            "options": options,
            "due_at": now,
            "published_at": now,
            "expires_at": now + timedelta(seconds=expires_in_s),
        }
        made = Tick.model_validate({**fields, **(tick or {})})
        await publish_until_stored(
            self.js, subjects.TICKS, subjects.manual_tick("home", None, made.run_id), made.to_json(), str(made.run_id)
        )
        return made

    async def messages(self, stream: str) -> list[Msg]:
        """Return everything in a stream."""
        found: list[Msg] = []
        state = (await self.js.stream_info(stream)).state
        for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
            try:
                found.append(await self.js.get_msg(stream, sequence))  # type: ignore[arg-type]
            except NotFoundError:
                continue
        return found

    async def count(self, stream: str) -> int:
        """Return how many messages a stream holds."""
        return (await self.js.stream_info(stream)).state.messages


def interval(name: str, every_s: int, **fields: Any) -> Schedule:
    """Return an interval schedule of the engine noop that is active from now on.

    One of a minute or more was due half a period ago and will be in half a period, so that it never is while a test looks.
    """
    now = datetime.now(UTC)
    phase_s = 0 if every_s < 60 else (int(now.timestamp()) - every_s // 2) % every_s
    return Schedule(
        **{
            "name": name,
            "engine": "noop",
            "timing": Interval(every_s=every_s, phase_s=phase_s),
            "active_since": now,
            **fields,
        }
    )


@pytest.fixture
async def bus(nats_server: Nats) -> AsyncIterator[Bus]:
    """Give a client of this test's server."""
    client = await nats.connect(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_quiet)
    yield Bus(client)
    await client.close()


async def _quiet(_: Exception) -> None:
    """A killed server is part of these tests."""


Start = Callable[..., ServiceProcess]


@pytest.fixture
def start(nats_server: Nats, tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a service on this test's NATS server; all are stopped at the end."""
    started: list[ServiceProcess] = []

    def start(name: str, database_url: str = "", **environment: str) -> ServiceProcess:
        service = ServiceProcess(name, tmp_path, nats_server.url, database_url, **environment)
        started.append(service)
        return service.wait_until_ready()

    yield start
    for service in started:
        service.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Give a file with a key and the certificate for 127.0.0.1 that it signed itself."""
    key, signed, both = tmp_path / "key.pem", tmp_path / "signed.pem", tmp_path / "both.pem"
    openssl = debian.program("openssl", "usr/bin/openssl")
    made = (openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=here")
    files = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", signed)
    subprocess.run([*made, *files], check=True, capture_output=True)
    both.write_text(key.read_text() + signed.read_text())
    return both
