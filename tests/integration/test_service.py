"""What every service does around its own work."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.http import plain_client
from tests.integration.conftest import Bus, Start, until
from tests.servers import Nats
from tests.services import ServiceProcess

SERVICES = ("scheduler", "runner", "recorder", "api")


@pytest.mark.parametrize("name", SERVICES)
async def test_health_metrics_and_micro_endpoints(name: str, bus: Bus, start: Start, nats_server: Nats, database_url: str) -> None:
    """Live says which service; ready names what is down; metrics are bounded; the NATS command line finds it."""
    service = start(name, database_url)
    http = plain_client(service.url, timeout=10)
    assert (await http.get("/health/live")).json()["service"] == name
    assert (await http.get("/health/ready")).json() == {"status": "up", "down": {}}
    metrics = (await http.get("/metrics")).text
    assert "refresher_build_info" in metrics
    assert "refresher_loop_lag_seconds_bucket" in metrics
    assert _healthcheck(service) == 0
    answer = await bus.client.request(f"$SRV.PING.refresher-{name}", b"", timeout=2)
    assert f'"name":"refresher-{name}"'.encode() in answer.data.replace(b'": "', b'":"')
    nats_server.kill()

    async def told() -> bool:
        ready = await http.get("/health/ready")
        return ready.status_code == 503 and "nats" in ready.json()["down"]

    await until(told, 20)
    assert _healthcheck(service) == 1
    assert service.process.poll() is None
    nats_server.start()

    async def back() -> bool:
        return (await http.get("/health/ready")).status_code == httpx.codes.OK

    await until(back, 20)
    await http.aclose()


@pytest.mark.parametrize("name", SERVICES)
async def test_a_login_that_was_refused_for_a_while_is_tried_again(name: str, start: Start, nats_server: Nats, database_url: str) -> None:
    """A password that was wrong for a moment on the server: the service is back by itself, and was not restarted."""
    service = start(name, database_url)
    right = nats_server.configuration.read_text()
    nats_server.configuration.write_text(right.replace('password: "', 'password: "other-'))
    nats_server.process.send_signal(signal.SIGHUP)
    await until(lambda: _is_ready(service, False), 20)
    await asyncio.sleep(1)  # some refusals
    nats_server.configuration.write_text(right)
    nats_server.process.send_signal(signal.SIGHUP)
    await until(lambda: _is_ready(service, True), 20)
    assert service.process.poll() is None


async def _is_ready(service: ServiceProcess, wanted: bool) -> bool:
    async with plain_client(service.url, timeout=10) as http:
        return ((await http.get("/health/ready")).status_code == httpx.codes.OK) == wanted


@pytest.mark.parametrize("name", SERVICES)
async def test_a_service_without_its_bus_waits_and_can_be_stopped(name: str, tmp_path: Path, unused_port: int) -> None:
    """It does not give up while NATS is away at its start, and says so; SIGTERM ends it nevertheless."""
    service = ServiceProcess(name, tmp_path, f"nats://127.0.0.1:{unused_port}", "postgresql://nobody@127.0.0.1:9/x")

    async def waits() -> bool:
        return f'"action": "waiting", "what": "NATS at nats://127.0.0.1:{unused_port}", "reason": ' in service.log.read_text()

    try:
        await until(waits, 20)
        await asyncio.sleep(1)  # further attempts
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(5) in (0, -signal.SIGTERM)
    finally:
        service.stop()


@pytest.mark.parametrize("name", SERVICES)
def test_a_wrong_setting_is_one_sentence(name: str, tmp_path: Path) -> None:
    """The variable, what is wrong with it and what it is; no traceback."""
    service = ServiceProcess(name, tmp_path, "nats://127.0.0.1:9", REFRESHER_LOG_LEVEL="loud")
    assert service.process.wait(20) == 78
    told = service.log.read_text()
    assert "REFRESHER_LOG_LEVEL" in told
    assert "'loud'" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("REFRESHER_NATS_URL", "http://u:secret@h", "begins with nats:// or tls://, and not with http; it is 'h'"),
        ("REFRESHER_DATABASE_URL", "mysql://u:secret@h/x?password=secret", "begins with postgresql://, and not with mysql; it is 'h/x'"),
        ("REFRESHER_API_HOST", "999.1.1.1", "cannot listen on 999.1.1.1, TCP port "),
        ("REFRESHER_API_HOST", "192.0.2.1", "Cannot assign requested address; name an address of this machine."),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(variable: str, value: str, told: str, tmp_path: Path) -> None:
    """Starting again would be no use, and the exit code says so; nobody reads a password in the log."""
    service = ServiceProcess("api", tmp_path, "nats://127.0.0.1:9", **{variable: value})
    assert service.process.wait(20) == 78
    log = service.log.read_text()
    assert log.count("\n") == 1
    assert told in log
    assert "secret" not in log


def test_a_port_that_is_taken_may_be_free_soon(tmp_path: Path) -> None:
    """One sentence, and an exit code with which it is started again."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        service = ServiceProcess("runner", tmp_path, "nats://127.0.0.1:9", REFRESHER_RUNNER_PORT=str(other.getsockname()[1]))
        assert service.process.wait(20) == 1
    assert "Address already in use; choose another port" in service.log.read_text()
    assert "Traceback" not in service.log.read_text()


def test_copies_that_one_server_cannot_hold_are_a_wrong_setting(nats_server: Nats, tmp_path: Path) -> None:
    """The scheduler, which makes the streams, says which and ends for good."""
    service = ServiceProcess("scheduler", tmp_path, nats_server.url, REFRESHER_NATS_REPLICAS="2")
    assert service.process.wait(20) == 78
    told = service.log.read_text()
    assert "REFRESHER_NATS_REPLICAS is 2, and this NATS server stands alone" in told
    assert "Traceback" not in told


def _healthcheck(service: ServiceProcess) -> int:
    """Run what asks in a container whether the service is ready, and return its exit code."""
    nobody = {f"REFRESHER_{name.upper()}_PORT": "9" for name in SERVICES}
    environment = {**os.environ, **nobody, f"REFRESHER_{service.name.upper()}_PORT": str(service.port)}
    return subprocess.run([sys.executable, "-m", "shared.healthcheck"], env=environment, stderr=subprocess.DEVNULL, check=False).returncode


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        *((f"REFRESHER_{each}_FILE", "missing") for each in ("NATS_PASSWORD", "NATS_CA", "DATABASE_PASSWORD")),
        *((f"REFRESHER_{each}_FILE", "directory") for each in ("NATS_PASSWORD", "NATS_CA", "DATABASE_PASSWORD")),
        ("REFRESHER_NATS_CA_FILE", "empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(variable: str, name: str, tmp_path: Path) -> None:
    """One that is not there or no file, and as authority one without a certificate: variable and file, before anything starts."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    service = ServiceProcess("recorder", tmp_path, "nats://127.0.0.1:9", **{variable: str(tmp_path / name)})
    assert service.process.wait(20) == 78
    told = service.log.read_text()
    assert variable in told
    assert str(tmp_path / name) in told
    assert "Traceback" not in told


_QUIET = """
from starlette.applications import Starlette
from services.scheduler.settings import SchedulerSettings
from shared import service
from shared.connect import broker
from tests.http import plain_client

service.DATE_EVERY_S = 3_600

def build(settings):
    built = service.Service("scheduler", broker(settings, "scheduler"))
    return built, Starlette(routes=built.routes())

service.start("scheduler", SchedulerSettings, build)
"""


async def test_a_service_that_nothing_wakes_stops_when_it_is_told(unused_port: int) -> None:
    """A signal ends its waiting at once, and not when it next looks at the clock."""
    environment = {**os.environ, "REFRESHER_SCHEDULER_PORT": str(unused_port)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _QUIET, env=environment)

    async def answers() -> bool:
        try:
            async with plain_client(f"http://127.0.0.1:{unused_port}") as http:
                answer = await http.get("/health/live")
        except httpx.TransportError:
            return False
        return "date" in answer.headers

    try:
        await until(answers, 20)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
