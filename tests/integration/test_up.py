"""`refresher up`, driven as its user drives it: the installed command, its output, the API, signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests import ports
from tests.http import plain
from tests.servers import Nats, Postgres, stop
from tests.standin.server import StandIn

REFRESHER = Path(sys.executable).parent / "refresher"
QUICK = 2.0


class Up:
    """One `refresher up` on a data directory."""

    command: tuple[str | Path, ...] = (REFRESHER, "up")

    def __init__(self, data: Path, **environment: str) -> None:
        self.data = data
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REFRESHER_")}
        self.environment = {**clean, "REFRESHER_DATA_DIR": str(data), **environment}
        data.mkdir(mode=0o700)
        self.take_ports()
        self.output = data.parent / f"{data.name}-output"
        self.start()

    def take_ports(self) -> None:
        """Remember ports that no other test has."""
        (self.data / "ports.json").write_text(json.dumps(ports.taken("api", "scheduler", "runner", "recorder", "nats", "postgres")))

    def start(self) -> None:
        """Start it and wait until it says that it runs."""
        before = self.output.stat().st_size if self.output.exists() else 0
        self.started_at = time.monotonic()
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
        self.wait_for("Refresher runs", before)
        self.took_s = time.monotonic() - self.started_at
        self.api = json.loads((self.data / "run.json").read_text())["api_url"]

    def wait_for(self, text: str, after: int = 0, deadline_s: float = 60) -> str:
        """Wait until the output, from this position on, holds a text and return it."""
        end = time.monotonic() + deadline_s
        while True:
            said = self.output.read_bytes()[after:].decode()
            if text in said:
                return said
            assert self.process.poll() is None, f"it ended:\n{said}"
            assert time.monotonic() < end, f"it did not say {text!r}:\n{said}"
            time.sleep(0.05)

    def __call__(self, *arguments: str) -> str:
        """Run another command on the same system and return what it prints."""
        done = subprocess.run([REFRESHER, *arguments], env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def results(self, **filters: str) -> list[dict[str, Any]]:
        """Return results from the API, newest first."""
        return list(plain.get(f"{self.api}/api/v1/results", params=filters).raise_for_status().json()["items"])

    def processes(self) -> list[psutil.Process]:
        """Return the process and everything below it."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def child(self, *words: str) -> psutil.Process:
        """Return the child whose command line holds these words."""
        (found,) = (each for each in psutil.Process(self.process.pid).children() if all(word in " ".join(each.cmdline()) for word in words))
        return found


def insist(ask: Callable[[], Any], deadline_s: float = 60) -> Any:
    """Ask until the system, which is getting up again, answers."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            return ask()
        except httpx.HTTPError:
            assert time.monotonic() < end
            time.sleep(0.2)


def all_gone(processes: list[psutil.Process]) -> bool:
    """Tell whether all of these have ended, within a few seconds."""
    end = time.monotonic() + 10
    while any(_still_there(processes)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _still_there(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE:
                yield each


@pytest.fixture
def standin() -> Iterator[StandIn]:
    """Give a speedtest.net on a line of 200 and 100 Mbit/s."""
    with StandIn(download_bps=200e6, upload_bps=100e6) as server:
        yield server


def test_a_first_day(open_directory: Path, standin: StandIn) -> None:
    """Start, first result, a schedule of one's own, stop, start again: everything is still there."""
    proxy = {name: value for name, value in standin.environment().items() if name != "no_proxy"}
    up = Up(open_directory / "data", **proxy)  # our own loopback needs no exception from a person's proxy
    try:
        said = up.wait_for("the first test")
        assert time.monotonic() - up.started_at < 60
        assert "Mbit/s down" in said
        assert up.api in said
        assert "hourly: speedtest at home every 3600 s" in said
        assert "Ctrl-C" in said
        (first,) = up.results()
        assert (first["status"], first["schedule"], first["trigger"]) == ("succeeded", "hourly", "manual")
        assert 100e6 < first["download_bps"] < 250e6
        assert 50e6 < first["upload_bps"] < 125e6
        assert first["server"]["host"] == standin.host

        up("schedules", "add", "quick", "--every", "1s", "--engine", "noop")
        end = time.monotonic() + 60
        while len(up.results(schedule="quick")) < QUICK:
            assert time.monotonic() < end
            time.sleep(0.1)
        up("schedules", "pause", "quick")
        up("doctor")

        listening = {
            connection.laddr.ip
            for process in up.processes()
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}

        processes, count = up.processes(), len(up.results())
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(30) == 0
        assert all_gone(processes)
        assert not (up.data / "run.json").exists()

        up.start()
        assert len(up.results()) == count, "nothing lost, and no second first run"
        assert {line["name"] for line in map(json.loads, up("schedules", "list", "--json").splitlines())} == {"hourly", "quick"}
    finally:
        stop(up.process)


def test_what_dies_is_started_again(open_directory: Path, standin: StandIn) -> None:
    """Each service and each server, killed without warning: the system goes on by itself, and a new run ends as a row."""
    up = Up(open_directory / "data", **standin.environment())
    try:
        up.wait_for("the first test")
        for name in ("services.scheduler", "services.runner", "services.recorder", "services.api", "nats-server", "postgres"):
            up.child(name).kill()
            before = up.output.stat().st_size
            up.wait_for(f"{name.removeprefix('services.').removesuffix('-server')} ended", max(0, before - 500))
        run = insist(lambda: plain.post(f"{up.api}/api/v1/runs", json={"engine": "noop"}).raise_for_status().json())
        row = insist(lambda: plain.get(f"{up.api}/api/v1/results/{run['run_id']}").raise_for_status().json())
        assert row["status"] == "succeeded"
    finally:
        stop(up.process)


def test_a_second_copy_is_refused(open_directory: Path, standin: StandIn) -> None:
    """Two on one data directory would ruin it: told who is there and what to do."""
    up = Up(open_directory / "data", **standin.environment())
    try:
        second = subprocess.run([REFRESHER, "up"], env=up.environment, capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode == 1
        assert str(up.process.pid) in second.stderr
        assert up.api in second.stderr
        assert "--data-dir" in second.stderr
    finally:
        stop(up.process)


def test_a_killed_supervisor_leaves_nothing_behind_and_can_start_again(open_directory: Path, standin: StandIn) -> None:
    """kill -9 of the command itself: its children end too, and the next start finds everything in order."""
    up = Up(open_directory / "data", **standin.environment())
    try:
        up.wait_for("the first test")
        processes = up.processes()
        up.process.kill()
        up.process.wait()
        assert all_gone(processes)
        up.start()
        assert up.took_s < 45, "PostgreSQL did not wait for the sessions of the dead"
        assert len(up.results()) == 1
    finally:
        stop(up.process)


def test_a_second_signal_ends_everything_at_once(open_directory: Path, standin: StandIn) -> None:
    """Ctrl-C twice: killed instead of stopped in order, and nothing is restarted."""
    up = Up(open_directory / "data", **standin.environment(), PGSSLMODE="require", REFRESHER_API_HOST="127.0.0.2")
    try:
        assert up.api.startswith("http://127.0.0.2:"), "found where it listens"
        processes, before = up.processes(), up.output.stat().st_size
        stubborn = up.child("postgres")
        stubborn.suspend()  # it would not stop by itself
        up.process.send_signal(signal.SIGINT)
        up.wait_for("stopping", before)
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(15) == 0
        assert all_gone(processes)
        assert "restarting" not in up.output.read_bytes()[before:].decode()
    finally:
        stop(up.process)


async def test_servers_of_ones_own_are_used(
    open_directory: Path, standin: StandIn, nats_server: Nats, postgres_server: Postgres, database_url: str
) -> None:
    """With their addresses in the environment, none is started."""
    up = Up(open_directory / "data", REFRESHER_NATS_URL=nats_server.url, REFRESHER_DATABASE_URL=database_url, **standin.environment())
    try:
        up.wait_for("the first test")
        assert len(up.results()) == 1
        commands = " ".join(" ".join(process.cmdline()) for process in up.processes())
        assert "nats-server" not in commands
        assert "postgres" not in commands
    finally:
        stop(up.process)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("REFRESHER_API_PORT", "eighty", "REFRESHER_API_PORT is 'eighty'"),
        ("REFRESHER_LOG_LEVEL", "loud", "REFRESHER_LOG_LEVEL"),
        ("REFRESHER_SITE", "My Site", "REFRESHER_SITE"),
    ],
)
def test_a_wrong_setting_is_told_and_ends_it(open_directory: Path, variable: str, value: str, told: str) -> None:
    """One sentence that names the variable, exit code 1, nothing left running: no loop of restarts."""
    environment = {**os.environ, "REFRESHER_DATA_DIR": str(open_directory / "data"), variable: value}
    done = subprocess.run([REFRESHER, "up"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told(open_directory: Path, listening_port: int) -> None:
    """A port that was asked for and is not free is a mistake to be told, not another port."""
    command = [REFRESHER, "up", "--data-dir", str(open_directory / "data"), "--port", str(listening_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {listening_port} is taken" in done.stderr
