"""Fixtures of the fault suite: a system under load, its ledger, and the figures of the scenario."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest

from tests.faults.ledger import Ledger
from tests.faults.scenario import Scenario, properties
from tests.faults.system import System, running
from tests.faults.table import PROPERTY, Table
from tests.integration.conftest import Bus
from tests.servers import Nats


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that keeps the figures."""
    parser.addoption("--faults-page", type=Path, default=None, help="the page whose table is written anew")


def pytest_configure(config: pytest.Config) -> None:
    """Take the figures of the scenarios, which other processes may run."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(config.getoption("--faults-page")), "faults")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let two processes share the scenarios: those that mostly wait, and those that take the machine. No two of a kind at once."""
    for item in (each for each in items if each.path.is_relative_to(Path(__file__).parent)):
        item.add_marker(pytest.mark.xdist_group("waits" if item.get_closest_marker("waits") else "works"))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Bus]:
    """Give a client of the bus that goes on when its server is back."""
    client = await nats.connect(url.split(","), max_reconnect_attempts=-1, reconnect_time_wait=0.1, ping_interval=5, error_cb=_quiet)
    try:
        yield Bus(client)
    finally:
        await client.close()


async def _quiet(_: Exception) -> None:
    """A killed server is part of these tests."""


@pytest.fixture
async def bus(nats_server: Nats) -> AsyncIterator[Bus]:
    """Give a client of this test's server."""
    async with connected(nats_server.url) as bus:
        yield bus


@pytest.fixture
async def system(nats_server: Nats, database_url: str, tmp_path: Path) -> AsyncIterator[System]:
    """Give a system on this test's servers, with nothing started yet."""
    async with running(System(tmp_path, nats_server.url, database_url)) as system:
        yield system


@pytest.fixture
async def ledger(bus: Bus, database_url: str) -> Ledger:
    """Give the account of this test's schedules."""
    return Ledger(bus, database_url)


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """Give what collects the figures; the mark `scenario` names its line in the table."""
    (name,) = request.node.get_closest_marker("scenario").args
    found = Scenario(name)
    yield found
    request.node.user_properties.append((PROPERTY, properties(found.figures)))
