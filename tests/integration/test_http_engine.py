"""The engine `http`, in its real process, against a stand-in for a LibreSpeed backend."""

import asyncio
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.runner.probes import http, load
from services.runner.probes.http import HttpOptions, measure
from shared.errors import ProbeError
from shared.events import Measurement
from tests.measuring import carried, memory_bytes, processes
from tests.standin.librespeed import LibreSpeed
from tests.testserver import TestServer

BARE = {"download": False, "upload": False, "loss": False}
LINE = {"download_bps": 40e6, "upload_bps": 20e6}
PATIENCE_S = 3
"""Longer than a busy machine keeps the stand-in waiting for a processor."""


def nothing(*_: object, **__: object) -> None:
    """Take a report and do nothing."""


async def until(condition: Callable[[], object], deadline_s: float = 10) -> None:
    """Wait for a condition."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.02)


async def run(server: LibreSpeed, report: Callable[..., None] = nothing, **options: Any) -> Measurement:
    """Run the engine against a stand-in, and see that no process is left."""
    try:
        return await load("http").run({"server": server.url, "timeout_s": PATIENCE_S, **options}, report)
    finally:
        assert processes(http.CHILD) == []


async def test_a_line_is_measured_as_it_is() -> None:
    """Rates, bytes, latencies, responsiveness and who is at both ends: all there, within 20 s."""
    reported: list[tuple[str, float | None]] = []

    def report(phase: str, fraction: float | None = None, rate_bps: float | None = None) -> None:
        reported.append((phase, rate_bps))

    began = time.monotonic()
    with LibreSpeed(**LINE) as server:
        result = await run(server, report)
        # held against what the stand-in let through, which shares the machine; the test on a shaped link is the exact one
        assert result.download_bps == carried(server.down, result.details["download"], LINE["download_bps"] * 1.05)
        assert result.upload_bps == carried(server.up, result.details["upload"], LINE["upload_bps"] * 1.05)
        assert result.download_bytes == pytest.approx(server.down.passed_bytes, rel=0.1)
        # not what was handed to the system: what arrived, of which the server may not have read the last
        assert server.up.passed_bytes <= result.upload_bytes < server.up.passed_bytes + 3e6
        assert result.server.url == f"http://{server.host}"
    assert time.monotonic() - began < 20
    assert (result.client.address, result.client.isp) == ("192.0.2.7", "Stand-in Telecom")
    assert 0 < result.latency_s < 0.02
    assert result.download_latency_s > 0
    assert result.upload_latency_s > 0
    assert result.responsiveness_rpm > 0
    assert result.details["congestion_control"] == "cubic"
    assert result.details["download"]["streams"] >= 2
    assert result.details["download"]["latency_probes"] >= 20
    assert list(dict.fromkeys(phase for phase, _ in reported)) == ["connecting", "latency", "download", "upload", "loss"]
    assert any(rate == pytest.approx(40e6, rel=0.5) for phase, rate in reported if phase == "download" and rate)


async def test_only_what_is_asked_for_is_done() -> None:
    """Without download and upload there is a latency and no rate; the address to measure from is used."""
    with LibreSpeed() as server:
        result = await run(server, **BARE, source_address="127.0.0.9", ip_version=4)
        assert {route for route, _ in server.requests} == {"unknown", "latency", "config"}
        assert server.clients == {"127.0.0.9"}
    assert result.latency_s > 0
    assert result.jitter_s >= 0
    numbers = result.model_dump(include={"download_bps", "upload_bps", "packet_loss", "download_latency_s", "confidence", "limited_by"})
    assert set(numbers.values()) == {None}


async def test_a_body_in_chunks_and_connections_that_close_are_measured_too() -> None:
    """PHP announces no length, and some servers close after every answer."""
    with LibreSpeed(**LINE, chunked=True) as server:
        result = await run(server, upload=False)
        assert result.download_bps == carried(server.down, result.details["download"], LINE["download_bps"] * 1.05)
    with LibreSpeed(keeps_open=False) as server:
        assert (await run(server, **BARE)).latency_s < 0.02


@pytest.mark.parametrize("fault", ["slow", "500"])
async def test_a_server_that_cannot_say_who_asks_still_serves(fault: str) -> None:
    """Without a way to ipinfo.io LibreSpeed's `getIP.php` waits for it, or ends in an error: only the client stays unknown."""
    with LibreSpeed(faults={"config": fault}) as server:
        result = await run(server, **BARE)
    assert result.latency_s > 0
    assert (result.client.address, result.client.isp) == (None, None)


async def test_https_is_verified(certificate: Path) -> None:
    """A certificate that nobody vouches for is refused; with its authority given, the line is measured."""
    with LibreSpeed(**LINE, certificate=certificate) as server:
        with pytest.raises(ProbeError, match=r"is not trusted: self-signed certificate.*ca_file") as caught:
            await run(server, **BARE)
        assert caught.value.kind == "bad_answer"
        result = await run(server, ca_file=str(certificate), loss=False)
        assert result.download_bps == carried(server.down, result.details["download"], LINE["download_bps"] * 1.05)
        assert result.upload_bps == carried(server.up, result.details["upload"], LINE["upload_bps"] * 1.05)


FAULTS = {
    "config": {
        "403": ("blocked", "HTTP 403"),
        "429": ("rate_limited", "too many tests"),
    },
    "latency": {
        "404": ("bad_answer", "no LibreSpeed backend"),
        "429": ("rate_limited", "HTTP 429 (Too Many Requests): too many tests"),
        "503": ("bad_answer", "no LibreSpeed backend"),
        "401": ("blocked", "HTTP 401"),
        "403": ("blocked", "HTTP 403"),
        "html200": ("bad_answer", "no LibreSpeed backend"),
        "close": ("bad_answer", "closed without an answer"),
        "garbage": ("bad_answer", "not HTTP"),
        "slow": ("timeout", "did not answer within 3 s"),
        "drip": ("timeout", "not complete after 3 s"),
        "endless": ("bad_answer", "body of more than"),
        "endless-head": ("bad_answer", "head of more than 16 kB"),
        "gzip-bomb": ("bad_answer", "no LibreSpeed backend"),
    },
    "download": {
        "204": ("bad_answer", "HTTP 204"),
        "404": ("bad_answer", "HTTP 404"),
        "429": ("rate_limited", "too many tests"),
        "500": ("bad_answer", "HTTP 500"),
        "503": ("bad_answer", "HTTP 503"),
        "busy": ("rate_limited", "HTTP 503 (Service Unavailable): too many tests"),
        "redirect": ("redirected", "/portal"),
        "html200": ("bad_answer", "page (text/html"),
        "truncate": ("truncated", "before the whole body"),
        "close": ("bad_answer", "closed without an answer"),
        "garbage": ("bad_answer", "not HTTP"),
        "slow": ("timeout", " 3 s"),  # no answer within, or not one byte for: on a busy machine either may be seen first
        "drip": ("bad_answer", "that is no measurement"),
        "endless-head": ("bad_answer", "head of more than 16 kB"),
        "gzip-bomb": ("bad_answer", "packed by gzip"),
        "too-long": ("bad_answer", "head of more than 16 kB"),
        "bad-chunks": ("bad_answer", "sizes that can be read"),
    },
    "upload": {
        "403": ("blocked", "HTTP 403"),
        "404": ("bad_answer", "HTTP 404"),
        "500": ("bad_answer", "HTTP 500"),
        "unread-500": ("bad_answer", "HTTP 500"),
        "redirect": ("redirected", "/portal"),
        "close": ("bad_answer", "closed without an answer"),
        "never-read": ("unconfirmed", "never confirmed"),
        "slow": ("unconfirmed", "never confirmed"),
        "endless-head": ("bad_answer", "head of more than 16 kB"),
    },
}
CASES = [(route, fault, kind, text) for route, faults in FAULTS.items() for fault, (kind, text) in faults.items()]


@pytest.mark.parametrize(("route", "fault", "kind", "text"), CASES, ids=[f"{route}-{fault}" for route, fault, _, _ in CASES])
async def test_a_lie_becomes_a_failure(route: str, fault: str, kind: str, text: str) -> None:
    """Whatever a server does that is no test ends soon, as a failure that names what happened."""
    began = time.monotonic()
    with LibreSpeed(**LINE, faults={route: fault}) as server, pytest.raises(ProbeError) as caught:
        await run(server, download=route == "download", upload=route == "upload", loss=False)
    assert (caught.value.kind, text in caught.value.message) == (kind, True), caught.value.message
    assert time.monotonic() - began < 15
    assert caught.value.engine_version == "refresher 0.1.0"


class OneWorker(LibreSpeed):
    """Serves the connection that was the first to ask for a load, and lets the others wait: which those are must not be chance."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._served: dict[str, threading.Thread] = {}

    def meets_fault(self, route: str, number: int) -> str | None:
        """Return the fault that this request on a route is to meet with."""
        here = threading.current_thread()
        return self.faults.get(route) if self._served.setdefault(route, here) is not here else None


@pytest.mark.parametrize("route", ["download", "upload"])
async def test_a_server_with_few_workers_is_measured_with_those(route: str) -> None:
    """All streams but one wait for ever: that one is measured, and what more of them would bring stays open."""
    with OneWorker(**LINE, faults={route: "slow"}) as server:
        result = await run(server, download=route == "download", upload=route == "upload", loss=False)
    details = result.details[route]
    line = server.down if route == "download" else server.up
    assert getattr(result, f"{route}_bps") == carried(line, details, LINE[f"{route}_bps"] * 1.05, within=0.1)
    assert details["streams"] >= 1
    assert details["streams_left_waiting"] >= 1
    assert result.confidence != "reliable"


class Tired(LibreSpeed):
    """Takes one upload and reads no other."""

    def meets_fault(self, route: str, number: int) -> str | None:
        """Return the fault that this request on a route is to meet with."""
        return "slow" if route == "upload" and number > 1 else None


@pytest.mark.parametrize("patience_s", [PATIENCE_S, 10])
async def test_the_probes_beside_an_upload_do_not_pass_for_it(patience_s: float) -> None:
    """Where the server reads nothing any more they alone go on: that is no rate, however long it may be silent."""
    with Tired(**LINE) as server, pytest.raises(ProbeError, match="the upload stood still: not one byte arrived for ") as caught:
        await run(server, download=False, loss=False, timeout_s=patience_s)
    assert caught.value.kind == "unconfirmed"


class Deep(LibreSpeed):
    """Has a queue of seconds in front of its download: the probes that come to it do not come back, all three."""

    first: int | None = None

    def meets_fault(self, route: str, number: int) -> str | None:
        """Return the fault that this request on a route is to meet with."""
        if route != "latency" or not self.count("download"):
            return None
        self.first = self.first or number
        return "slow" if number < self.first + 3 else None


async def test_latency_that_is_longer_than_the_load_is_known_at_the_least() -> None:
    """The worse direction is not the one that goes missing: what never came back counts as long as it was waited for."""
    with Deep(**LINE) as server:
        result = await run(server, timeout_s=10, loss=False)
    assert result.download_latency_s > 2
    assert result.upload_latency_s < 0.4
    assert result.bufferbloat_grade == "F"
    assert result.responsiveness_rpm is None


async def test_an_endless_body_is_a_download_and_costs_no_memory() -> None:
    """A body that never ends is what a download is made of: its rate is measured, and the child stays small."""
    most = 0
    with LibreSpeed(faults={"download": "endless"}) as server:
        task = asyncio.create_task(run(server, upload=False, loss=False))
        while not task.done():
            most = max(most, memory_bytes(http.CHILD))
            await asyncio.sleep(0.05)
        assert (await task).download_bps > 40e6
    assert 10e6 < most < 100e6


async def test_a_budget_of_bytes_is_kept() -> None:
    """`max_bytes` and the light mode bound what is moved; what cannot be measured within it fails."""
    with LibreSpeed(**LINE) as server:
        with pytest.raises(ProbeError, match="its share of max_bytes, 1000000 bytes") as caught:
            await run(server, max_bytes=1_000_000, upload=False)
        assert caught.value.kind == "byte_limit"
        assert server.down.passed_bytes < 6e6
    with LibreSpeed(download_bps=100e6, upload_bps=50e6) as server:
        result = await run(server, light=True)
        assert result.download_bytes + result.upload_bytes < 60e6
        assert server.down.passed_bytes + server.up.passed_bytes < 60e6
        assert result.download_bps == pytest.approx(100e6, rel=0.1)
        assert result.upload_bps == pytest.approx(50e6, rel=0.1)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"server": "ftp://127.0.0.1/"}, "misconfigured", "begins with http:// or https://"),
        ({"server": "http://[::1/"}, "misconfigured", "Invalid IPv6 URL"),
        ({"server": "http://127.0.0.1:99999"}, "misconfigured", "Port out of range"),
        ({"server": "http://here..example"}, "misconfigured", "label empty or too long"),
        ({"server": "http://a b.example/"}, "unreachable", "a b.example cannot be resolved"),
        ({"server": "http://127.0.0.1:1"}, "unreachable", "Connection refused"),
        ({"server": "http://127.0.0.1:1", "ip_version": 6}, "unreachable", "cannot be resolved"),
        ({"server": "http://224.0.0.1:1"}, "line_down", "Network is unreachable"),  # TCP to a group: no machine has a way there
        ({"source_address": "192.0.2.1"}, "misconfigured", "source_address 192.0.2.1 cannot be used"),
        ({"interface": "none0"}, "misconfigured", "interface none0 cannot be used"),
        ({"server": "https://127.0.0.1:1", "ca_file": "/nowhere"}, "misconfigured", "ca_file /nowhere"),
        ({"server_list": "http://192.0.2.1/list"}, "misconfigured", "name a server, or a server_list"),
    ],
)
async def test_what_cannot_be_used_is_named(options: dict[str, Any], kind: str, text: str) -> None:
    """A wrong option or an address where nobody is ends before anything is measured."""
    with pytest.raises(ProbeError, match=text) as caught:
        await load("http").run({"server": "http://127.0.0.1:1", **options}, nothing)
    assert caught.value.kind == kind


WITHOUT_A_LINE = """
import asyncio

from services.runner.probes import load
from shared.errors import ProbeError

for engine, options in (
    ("http", {"server": "http://nowhere.example"}),
    ("http", {"server": "http://both.example:1"}),
    ("speedtest", {"https": False}),
):
    try:
        asyncio.run(load(engine).run(options, lambda *_, **__: None))
    except ProbeError as error:
        print(error.kind, error.message)
"""


@pytest.fixture
def isolated(tmp_path: Path) -> list[str | Path]:
    """Give what to put before a shell's command: a network without a way out, a resolver that nobody runs, and a name of two addresses."""
    hosts, resolver = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("127.0.0.1 both.example\n2001:db8::1 both.example\n")
    resolver.write_text("nameserver 127.0.0.1\n")
    script = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && ip link set lo up && shift 2 && eval "$@"'
    command = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", script, "sh", hosts, resolver]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no namespace of its own for a process here: {getattr(error, 'stderr', error)}")
    return command


@pytest.mark.parametrize(("route", "kind"), [("true", "line_down"), ("ip route add default dev lo", "unreachable")])
def test_a_line_that_is_down_is_told_from_others_trouble(isolated: list[str | Path], route: str, kind: str) -> None:
    """Without a resolver it is down only where there is no way out either; and not where a server refuses on one of its two addresses."""
    command = f"{route} && exec {sys.executable} -c {shlex.quote(WITHOUT_A_LINE)}"
    done = subprocess.run([*isolated, command], check=True, capture_output=True, text=True, timeout=60)
    nowhere, both, library = done.stdout.splitlines()
    assert nowhere.startswith(f"{kind} nowhere.example cannot be resolved"), nowhere
    assert both.startswith("unreachable both.example:1 cannot be reached: Connection refused"), both
    assert library.startswith(f"{kind} http://www.speedtest.net/speedtest-config.php cannot be used"), library


async def test_the_nearest_of_a_list_is_taken() -> None:
    """Of the servers that answer; those that do not, and entries that are none, are passed over."""
    with LibreSpeed() as server:
        dead = {"id": 1, "name": "Dead", "server": "//127.0.0.1:1/backend/", "dlURL": "garbage.php", "ulURL": "empty.php"}
        live = dead | {"id": 2, "name": "Alive", "server": f"//{server.host}/backend/", "sponsorName": "Us"}
        urls = {"pingURL": "empty.php", "getIpURL": "getIP.php"}
        odd = [live | urls | {"server": each} for each in ("//[::1/", "//x..y/", "//127.0.0.1:99999/", "//127.0.0.1:1/a b/", 7)]
        odd += [live | urls | {"pingURL": "empty .php\r\n"}, {"id": 3}, None, []]
        server.listed = [dead | urls, *odd, live | urls]
        options = {"server_list": f"{server.url}/servers.json?all=1", **BARE}
        result = await load("http").run(options, nothing)
        assert ("servers", "/servers.json?all=1") in server.requests
        assert (result.server.id, result.server.name, result.server.sponsor) == ("2", "Alive", "Us")
        assert result.client.address == "192.0.2.7"
        server.listed = [dead | urls]
        with pytest.raises(ProbeError, match=r"of the 1 servers .* none answered") as caught:
            await load("http").run(options, nothing)
        assert caught.value.kind == "no_server"


async def test_a_server_is_asked_under_the_path_that_was_written() -> None:
    """With a space and letters of any language in it: as they go into a request."""
    with LibreSpeed() as server:
        await load("http").run({"server": f"{server.url}/Prüfung 1%2F2/", **BARE}, nothing)
    assert "/Pr%C3%BCfung%201%2F2/backend/empty.php" in {target for _, target in server.requests}


class Hinting(LibreSpeed):
    """Sends interim answers before those that count; `hints`: how many."""

    hints = 2

    def converse(self, connection: socket.socket) -> None:
        """Send them before each answer."""
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n" * self.hints)
        super().converse(connection)


async def test_interim_answers_are_passed_over() -> None:
    """They are no answers; nothing but such is none either."""
    with Hinting(keeps_open=False) as server:
        assert (await run(server, **BARE)).latency_s > 0
        server.hints = 50
        with pytest.raises(ProbeError, match=r"nothing but interim answers \(HTTP 103\)") as caught:
            await run(server, **BARE)
    assert caught.value.kind == "bad_answer"


async def test_our_own_server_echoes_datagrams(tmp_path: Path) -> None:
    """It is recognised, with its token; what it echoes tells of loss there and back, and none is lost here."""
    secret = tmp_path / "token"
    secret.write_text("let-me-in-if-you-please\n")
    server = TestServer(tmp_path, token_file=str(secret))
    try:
        options = {"server": server.url, "download": False, "upload": False}
        with pytest.raises(ProbeError, match="HTTP 401") as caught:
            await load("http").run(options, nothing)
        assert caught.value.kind == "blocked"
        result = await load("http").run({**options, "token": "let-me-in-if-you-please"}, nothing)
    finally:
        server.stop()
    assert result.details["backend"] == "refresher"
    assert result.details["echo_datagrams"] >= 2_000
    assert (result.details["echo_lost"], result.packet_loss) == (0, 0)


async def test_cloudflare_is_asked_as_it_wants_to_be() -> None:
    """Where it is and who asks come from its trace; less than 100 MB at a time, for more it wants a Referer."""
    with LibreSpeed(**LINE) as server:
        result = await run(server, backend="cloudflare", loss=False)
        targets = {target for _, target in server.requests}
    assert targets == {"/cdn-cgi/trace", "/__down?bytes=0", "/__down?bytes=99000000", "/__up"}
    assert (result.server.id, result.server.sponsor, result.client.address) == ("FRA", "Cloudflare", "192.0.2.7")
    assert result.download_bps == carried(server.down, result.details["download"], LINE["download_bps"] * 1.05)
    assert result.upload_bps == carried(server.up, result.details["upload"], LINE["upload_bps"] * 1.05)


async def test_the_deadline_and_a_cancellation_end_a_run() -> None:
    """Whatever the server does, the run is over on time, and when it is cancelled; no process is left behind."""
    with LibreSpeed(faults={"latency": "slow"}) as server:
        # shorter than a person may ask for
        options = HttpOptions(server=server.url, timeout_s=60).model_copy(update={"deadline_s": 1.0})
        with pytest.raises(ProbeError, match="not over after 1 s; its last phase was connecting"):
            await measure(options, nothing)
        assert processes(http.CHILD) == []
        task = asyncio.create_task(measure(options.model_copy(update={"deadline_s": 60.0}), nothing))
        await until(lambda: processes(http.CHILD))
        (child,) = processes(http.CHILD)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not child.is_running()
