"""Which servers a system uses and where it is to be found."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from services.embedded import supervisor
from services.embedded.children import Child
from services.embedded.program import Program
from services.embedded.readiness import until_listening
from services.embedded.system import System, assemble
from shared.errors import Unavailable
from tests import ports

FOREIGN = {
    "REFRESHER_NATS_URL": "tls://me:secret@bus.example,nats://h:abc",
    "REFRESHER_DATABASE_URL": "postgresql:///x?host=/run&password=secret",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, open_directory: Path) -> pytest.MonkeyPatch:
    """Give an environment that names servers of others, and ports for the rest."""
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    names = ("api", "scheduler", "runner", "recorder", "nats", "postgres")
    (open_directory / "ports.json").write_text(json.dumps(ports.taken(*names)))
    return monkeypatch


def test_servers_of_others_are_used_as_they_are(environment: pytest.MonkeyPatch, open_directory: Path) -> None:
    """Whatever form their URLs have; what is told of them holds no password."""
    system = assemble(open_directory)
    assert system.servers == ()
    assert (system.nats_url, system.database_url) == tuple(FOREIGN.values())
    assert system.foreign == ("REFRESHER_NATS_URL (bus.example)", "REFRESHER_DATABASE_URL (no host named)")


def test_our_own_addresses_in_the_environment_are_not_servers_of_others(environment: pytest.MonkeyPatch, open_directory: Path) -> None:
    """After `eval "$(refresher env)"` and a stop, `refresher up` in the same shell starts its own servers again."""
    environment.delenv("REFRESHER_NATS_URL")
    first = assemble(open_directory)
    environment.setenv("REFRESHER_NATS_URL", first.nats_url)
    again = assemble(open_directory)
    assert [program.name for program in again.servers] == ["nats"]
    assert len(again.foreign) == 1


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("127.0.0.2", "http://127.0.0.2:1"),
        ("::", "http://[::1]:1"),
    ],
)
def test_a_service_is_asked_where_it_listens(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    """With REFRESHER_API_HOST set, nothing need answer at 127.0.0.1."""
    monkeypatch.setenv("REFRESHER_API_HOST", host)
    assert System((), (), "", "", {"api": 1}, ()).api_url == url


async def test_a_server_that_ends_again_and_again_is_told_soon(tmp_path: Path) -> None:
    """The last line of its log says why; a minute of waiting would not."""
    command = (sys.executable, "-c", "print('first'); print('no space left')")
    child = Child(Program("server", command, log=tmp_path / "log", port=ports.take()), supervisor.say, lambda: None)
    await child.start()
    try:
        with pytest.raises(Unavailable, match="no space left"):
            await asyncio.wait_for(until_listening(child), 20)
    finally:
        await child.stop()
