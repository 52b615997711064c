"""Fixtures: one Postgres for the session with a database per test, and a NATS server per test."""

import asyncio
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import asyncpg
import nats
import pytest
from hypothesis import settings

from shared.migrate import migrate
from shared.provision import provision, provision_runner
from tests import ports
from tests.servers import Nats, Postgres

settings.register_profile("refresher", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("refresher")

_numbers = count(1)


def pytest_configure() -> None:
    """Have Ctrl-C reach what the tests start: where they run in the background, a shell lets everything below ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Give a directory that every account may enter (pytest's own are closed, and PostgreSQL will not run as root)."""
    path = Path(tempfile.mkdtemp(prefix="refresher-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """Start one PostgreSQL for all tests."""
    path = Path(tempfile.mkdtemp(prefix="refresher-postgres-"))
    path.chmod(0o711)
    server = Postgres(path)
    yield server
    server.stop()
    shutil.rmtree(path)


@pytest.fixture
async def template(postgres_server: Postgres) -> str:
    """Migrate one database, once; tests copy it."""
    connection = await asyncpg.connect(postgres_server.url)
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = 'template_refresher'"):
            await connection.execute("CREATE DATABASE template_refresher")
            inside = await asyncpg.connect(postgres_server.database("template_refresher"))
            await migrate(inside)
            await inside.close()
    finally:
        await connection.close()
    return "template_refresher"


@pytest.fixture
async def database_url(postgres_server: Postgres, template: str) -> AsyncIterator[str]:
    """Give the URL of an empty, migrated database of this test's own."""
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(postgres_server.url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres_server.database(name)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Give a connection to this test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def _provision(url: str) -> None:
    client = await nats.connect(url)
    await provision(client.jetstream())
    await provision_runner(client.jetstream(), "home")
    await client.close()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[Nats]:
    """Start a NATS server for one test, with everything on it that the scheduler makes at its start, and the site `home`."""
    server = Nats(tmp_path)
    with ThreadPoolExecutor(1) as elsewhere:  # this thread may have an event loop already
        elsewhere.submit(asyncio.run, _provision(server.url)).result()
    yield server
    server.stop()


@pytest.fixture
def listening_port() -> Iterator[int]:
    """Give a loopback port on which something accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def unused_port() -> int:
    """Give a loopback port on which nothing listens."""
    return ports.take()
