"""A real Caddy with the shipped Caddyfile before a real API: what is reachable from outside, and how."""

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.embedded.program import Program, free_port
from shared import subjects
from tests.debian import program
from tests.integration.api_server import Api, api_server
from tests.integration.conftest import Bus, until
from tests.servers import Nats, start, stop, wait_for_port

CADDYFILE = Path(__file__).parents[2] / "deploy" / "caddy" / "Caddyfile"
DOMAIN = "refresher.localhost"
"""A name for which Caddy's own authority makes the certificate, and that is not localhost itself."""


@pytest.fixture(scope="session")
def binary() -> Path:
    """Give the program."""
    return program("caddy", "usr/bin/caddy")


class Caddy:
    """A running Caddy."""

    def __init__(self, data: Path, http: int, https: int) -> None:
        self.data, self.http, self.https = data, http, https

    def client(self, host: str = DOMAIN) -> httpx.AsyncClient:
        """Return a client that trusts Caddy's own authority, and nobody else."""
        trust = ssl.create_default_context(cafile=str(self.data / "caddy" / "pki" / "authorities" / "local" / "root.crt"))
        return httpx.AsyncClient(
            verify=trust, trust_env=False, timeout=20, transport=_Named(verify=trust), base_url=f"https://{host}:{self.https}"
        )


class _Named(httpx.AsyncHTTPTransport):
    """Connects to loopback whatever the name is; the name goes into the handshake and the Host header."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        request.url = request.url.copy_with(host="127.0.0.1")
        return await super().handle_async_request(request)


def _environment(data: Path, domain: str = "") -> dict[str, str]:
    named = {"REFRESHER_DOMAIN": domain} if domain else {}
    return {"XDG_DATA_HOME": str(data), "XDG_CONFIG_HOME": str(data), "HOME": str(data), **named}


@contextlib.contextmanager
def caddy(binary: Path, directory: Path, domain: str, api: int, grafana: int) -> Iterator[Caddy]:
    """Run Caddy with the shipped file, in which only ports and the addresses behind it are changed."""
    running = Caddy(directory / "data", free_port(), free_port())
    text = CADDYFILE.read_text()
    for old, new in (
        ("\n{\n", f"\n{{\n\thttp_port {running.http}\n\thttps_port {running.https}\n\tadmin off\n\tdefault_bind 127.0.0.1\n"),
        ("api:8470", f"127.0.0.1:{api}"),
        ("grafana:3000", f"127.0.0.1:{grafana}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    changed = directory / "Caddyfile"
    changed.write_text(text)
    process = start(
        Program(
            "caddy",
            (str(binary), "run", "--config", str(changed), "--adapter", "caddyfile"),
            _environment(running.data, domain),
            log=directory / "logs" / "caddy.log",
        )
    )
    try:
        wait_for_port(running.https)
        _wait_for(running.data / "caddy" / "certificates" / "local" / (domain or "localhost"))
        yield running
    finally:
        stop(process)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not (path.is_dir() and any(path.glob("*.json"))):
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.05)


@pytest.fixture
def api(nats_server: Nats, database_url: str, tmp_path: Path) -> Iterator[Api]:
    """Start an API that knows the public name, as deploy/compose.yml tells it."""
    with api_server(nats_server.url, database_url, tmp_path, REFRESHER_API_HOSTS=f"api,{DOMAIN},") as running:
        yield running


@pytest.fixture
def grafana(tmp_path: Path) -> Iterator[int]:
    """Start a web server in the place of Grafana that serves a file under its sub path; give its port."""
    for path in ("grafana/d/speed", "grafana/metrics"):
        (tmp_path / "web" / path).mkdir(parents=True)
        (tmp_path / "web" / path / "index.html").write_text("this is Grafana")
    port = free_port()
    process = start(
        Program(
            "web",
            (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path / "web"), str(port)),
            log=tmp_path / "logs" / "web.log",
        )
    )
    wait_for_port(port)
    yield port
    stop(process)


@pytest.fixture
def outside(binary: Path, api: Api, grafana: int, tmp_path: Path) -> Iterator[Caddy]:
    """Run Caddy under a name before both."""
    with caddy(binary, tmp_path, DOMAIN, _port(api), grafana) as running:
        yield running


@pytest.fixture
async def client(outside: Caddy) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client from outside."""
    async with outside.client() as opened:
        yield opened


def _port(api: Api) -> int:
    return int(api.url.rsplit(":", 1)[1])


@pytest.mark.parametrize("domain", ["", "speed.example.org"])
def test_the_shipped_file_is_valid(binary: Path, tmp_path: Path, domain: str) -> None:
    """Caddy takes it as it is, with a name and without, and in the form that its own formatter gives it."""
    environment = {**os.environ, **_environment(tmp_path, domain)}
    for command in (["validate", "--config", str(CADDYFILE), "--adapter", "caddyfile"], ["fmt", str(CADDYFILE)]):
        done = subprocess.run([str(binary), *command], env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout == CADDYFILE.read_text()


async def test_a_public_name_serves_the_api_over_https(client: httpx.AsyncClient, outside: Caddy) -> None:
    """The certificate is good, the headers are there, and plain HTTP only leads here."""
    answer = await client.get("/api/v1/results")
    assert (answer.status_code, answer.json()["items"]) == (200, [])
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "geolocation=()" in answer.headers["permissions-policy"]
    assert not {"server", "via", "alt-svc"} & set(answer.headers)
    assert "Swagger" in (await client.get("/docs")).text
    assert (await client.get("/openapi.json")).json()["info"]["title"] == "Refresher"
    async with httpx.AsyncClient(trust_env=False) as plain:
        moved = await plain.get(f"http://127.0.0.1:{outside.http}/api/v1/results", headers={"Host": DOMAIN})
    assert moved.status_code == 308
    assert moved.headers["location"].startswith(f"https://{DOMAIN}")


async def test_without_a_name_it_is_localhost(binary: Path, api: Api, grafana: int, tmp_path: Path) -> None:
    """The local authority vouches for localhost; HSTS would reach every other program there, and is not sent."""
    with caddy(binary, tmp_path, "", _port(api), grafana) as local:
        async with local.client("localhost") as client:
            answer = await client.get("/api/v1/results")
            assert answer.status_code == 200
            assert "strict-transport-security" not in answer.headers
        async with httpx.AsyncClient(trust_env=False) as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(f"https://localhost:{local.https}/")


async def test_nothing_else_is_reachable(outside: Caddy, api: Api) -> None:
    """What the services tell each other and Prometheus stays inside, however it is asked for."""
    async with api.client() as inside:
        assert (await inside.get("/metrics")).status_code == 200
    for path in (
        *("/metrics", "/health/live", "/health/ready", "/health", "/anything", "//metrics", "/api/../metrics", "/api/%2e%2e/metrics"),
        *("/apix", "/grafana/metrics", "/grafana/./metrics", "/grafana//metrics", "/grafanax", "/docs/oauth2-redirect"),
    ):
        status, answer = await _raw(outside, path)
        assert (status, answer) == (404, b""), path


async def _raw(outside: Caddy, path: str) -> tuple[int, bytes]:
    """Ask for a path exactly as it is written: httpx would tidy it up."""
    trust = ssl.create_default_context(cafile=str(outside.data / "caddy" / "pki" / "authorities" / "local" / "root.crt"))
    reader, writer = await asyncio.open_connection("127.0.0.1", outside.https, ssl=trust, server_hostname=DOMAIN)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {DOMAIN}:{outside.https}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


async def test_grafana_is_behind_its_path(client: httpx.AsyncClient) -> None:
    """The path goes on whole: Grafana serves from the sub path."""
    answer = await client.get("/grafana/d/speed/")
    assert (answer.status_code, answer.text) == (200, "this is Grafana")
    assert "strict-transport-security" in answer.headers
    assert answer.headers["referrer-policy"] == "same-origin"
    assert "server" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
async def test_from_outside_nothing_can_be_changed(method: str, client: httpx.AsyncClient, bus: Bus) -> None:
    """The API has no passwords: whoever comes from the internet may look, and that is all."""
    schedule = {"name": "theirs", "timing": {"kind": "interval", "every_s": 1}}
    for path in ("/api/v1/schedules", "/api/v1/schedules/theirs", "/api/v1/runs"):
        assert (await client.request(method, path, json=schedule)).status_code == 403
    assert not await bus.count(f"KV_{subjects.SCHEDULES}")
    assert not await bus.count(subjects.TICKS)
    assert (await client.get("/api/v1/schedules")).status_code == 200


async def test_events_pass_at_once_and_a_client_that_leaves_is_noticed(client: httpx.AsyncClient, bus: Bus, api: Api) -> None:
    """Nothing holds an event back until there are more; nor does the API go on sending to nobody."""
    async with client.stream("GET", "/api/v1/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        assert await asyncio.wait_for(anext(lines), 5) == ": listening"
        for _ in range(3):
            tick = await bus.tick()
            seen = await asyncio.wait_for(_next_event(lines), 2)
            assert seen["run_id"] == str(tick.run_id)
    await until(lambda: _listeners(api, 0))


async def _next_event(lines: AsyncIterator[str]) -> Any:
    async for line in lines:
        if line.startswith("data: "):
            return json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended")


async def _listeners(api: Api, count: int) -> bool:
    async with api.client() as inside:
        return f"refresher_api_live_clients {float(count)}\n" in (await inside.get("/metrics")).text


async def test_a_name_that_is_not_ours_is_refused(outside: Caddy) -> None:
    """Another name than the one it was given gets no certificate: the handshake ends there."""
    async with outside.client("other.localhost") as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/api/v1/results")
