"""The engine `speedtest`, with the real library in its real process, against a stand-in for speedtest.net."""

import asyncio
import os
import ssl
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.runner.probes import load, speedtest
from services.runner.probes.speedtest import SpeedtestOptions, measure
from shared.errors import ProbeError
from shared.events import Measurement
from tests import debian
from tests.measuring import processes
from tests.standin import StandIn
from tests.standin.pages import World

QUICK = {"timeout_s": 3, "server_ids": [1001]}
NEITHER = {"download": False, "upload": False}
NO_WAY = "224.0.0.1"
"""TCP to a group: the kernel says at once that the network is unreachable, whatever the machine's routes are."""


def nothing(*_: object, **__: object) -> None:
    """Take a report and do nothing."""


async def until(condition: Callable[[], object], deadline_s: float = 10) -> None:
    """Wait for a condition."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.02)


@pytest.fixture
def aim(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandIn], None]:
    """Give the way to aim this process's speed tests at a stand-in."""

    def aim(server: StandIn) -> None:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)

    return aim


@pytest.fixture
def run(aim: Callable[[StandIn], None]) -> Callable[..., Any]:
    """Give the way to run the engine against a stand-in."""

    async def run(server: StandIn, report: Callable[..., None] = nothing, **options: Any) -> Measurement:
        aim(server)
        try:
            return await load("speedtest").run({**QUICK, **options}, report)
        finally:
            assert processes(speedtest.CHILD) == []

    return run


async def test_a_line_is_measured_as_it_is(run: Callable[..., Any]) -> None:
    """The rates are those of the line, the bytes those that went over it, and all that the server says of itself is kept."""
    reported: list[tuple[str, float | None, float | None]] = []

    def report(phase: str, fraction: float | None = None, rate_bps: float | None = None) -> None:
        reported.append((phase, fraction, rate_bps))

    with StandIn(download_bps=40e6, upload_bps=60e6) as server:
        result = await run(server, report)
        # held against what the stand-in let through, which shares the machine
        assert result.download_bps == pytest.approx(server.down.mean_bps(), rel=0.15)
        assert result.upload_bps == pytest.approx(server.up.mean_bps(), rel=0.25)
        assert 20e6 < result.download_bps < 46e6
        assert result.download_bytes == pytest.approx(server.down.passed_bytes, rel=0.1)
        # what was under way when the time was up had arrived, though the server never read it
        assert server.up.passed_bytes <= result.upload_bytes < server.up.passed_bytes + 1e6
        assert 0 < result.latency_s < 0.5
        assert result.server.model_dump(exclude={"distance_m"}) == {
            "id": "1001",
            "name": "Potsdam",
            "sponsor": "Near & Dear",
            "url": f"http://{server.host}/speedtest/upload.php",
            "host": server.host,
            "country": "Germany",
            "country_code": "DE",
            "latitude": 52.39,
            "longitude": 13.06,
        }
        assert result.server.distance_m == pytest.approx(27_486, abs=10)
        assert result.client.model_dump() == {
            "isp": "Stand-in Telecom",
            "address": "192.0.2.7",
            "country_code": "DE",
            "latitude": 52.52,
            "longitude": 13.405,
        }
    assert result.engine_version == "speedtest-cli 2.1.3"
    assert result.details["configuration_over"] == "http"
    assert result.confidence == ("reliable" if result.latency_s <= 0.015 else "indicative")  # as a busy machine may have it
    assert "Potsdam" not in result.log
    assert server.host in result.log
    assert "https failed" in result.log
    assert "in small pieces" not in result.log
    phases = list(dict.fromkeys(phase for phase, _, _ in reported))
    assert phases == ["connecting", "latency", "download", "upload"]
    rates = [rate for phase, fraction, rate in reported if phase == "download" and fraction is not None]
    assert any(rate == pytest.approx(40e6, rel=0.5) for rate in rates)


async def test_only_what_is_asked_for_is_done(run: Callable[..., Any]) -> None:
    """Without download and upload there is a latency and no other number; without https there is no https."""
    with StandIn() as server:
        result = await run(server, **NEITHER, https=False, source_address="127.0.0.9")
        assert {route for route, _ in server.requests} == {"config", "servers", "latency"}
        assert server.clients == {"127.0.0.9"}
    assert result.latency_s
    numbers = result.model_dump(include={"download_bps", "upload_bps", "download_bytes", "upload_bytes"})
    assert set(numbers.values()) == {None}
    assert "https" not in result.log


async def test_servers_are_chosen_and_excluded(run: Callable[..., Any]) -> None:
    """Ids choose, exclusions exclude, and when nothing is left the failure says so."""
    with StandIn() as server:
        assert (await run(server, **NEITHER, server_ids=[1002])).server.id == "1002"
        assert (await run(server, **NEITHER, server_ids=[], exclude_ids=[1001])).server.id == "1002"
        for options in (
            {"server_ids": [7]},
            {"server_ids": [1001], "exclude_ids": [1001]},
            {"server_ids": [], "exclude_ids": [1001, 1002]},
        ):
            with pytest.raises(ProbeError) as caught:
                await run(server, **NEITHER, **options)
            assert caught.value.kind == "no_server"


FAULTS = {
    "config": {
        "204": ("bad_answer", "HTTP 204"),
        "401": ("blocked", "HTTP 401"),
        "403": ("blocked", "HTTP 403"),
        "404": ("bad_answer", "HTTP 404"),
        "429": ("rate_limited", "rate limited"),
        "500": ("bad_answer", "HTTP 500"),
        "refused": ("unreachable", "Connection refused"),
        "redirect": ("redirected", "/portal, beginning with '<!DOCTYPE"),
        "html200": ("bad_answer", "beginning with '<!DOCTYPE"),
        "truncate": ("truncated", "bytes early"),
        "close": ("bad_answer", "closed without an answer"),
        "garbage": ("bad_answer", "was not HTTP"),
        "slow": ("timeout", "nothing came or went for 3 s"),
        "drip": ("timeout", "not complete after 3 s"),
        "endless": ("bad_answer", "longer than 8 MB"),
        "gzip-bomb": ("bad_answer", "unpacks to more than 8 MB"),
    },
    "servers": {
        "404": ("bad_answer", "HTTP 404"),
        "429": ("rate_limited", "rate limited"),
        "refused": ("unreachable", "Connection refused"),
        "redirect": ("redirected", "/portal"),
        "html200": ("bad_answer", "beginning with '<!DOCTYPE"),
        "truncate": ("truncated", "bytes early"),
        "endless": ("bad_answer", "longer than 8 MB"),
        "gzip-bomb": ("bad_answer", "unpacks to more than 8 MB"),
    },
    "latency": {
        "403": ("blocked", "HTTP 403"),
        "404": ("unreachable", "HTTP 404"),
        "429": ("rate_limited", "rate limited"),
        "refused": ("unreachable", "Connection refused"),
        "redirect": ("unreachable", "redirected to"),
        "html200": ("unreachable", "instead of test=test"),
        "truncate": ("unreachable", "instead of test=test"),
        "close": ("unreachable", "closed without an answer"),
        "garbage": ("unreachable", "was not HTTP"),
        "slow": ("unreachable", "nothing came or went for 3 s"),
    },
    "download": {
        "204": ("bad_answer", "another page"),
        "404": ("bad_answer", "HTTP 404"),
        "403": ("blocked", "HTTP 403"),
        "429": ("rate_limited", "rate limited"),
        "500": ("bad_answer", "HTTP 500"),
        "refused": ("unreachable", "Connection refused"),
        "redirect": ("redirected", "redirected to"),
        "html200": ("bad_answer", "another page (text/html)"),
        "truncate": ("truncated", "before the whole body"),
        "close": ("bad_answer", "closed without an answer"),
        "garbage": ("bad_answer", "was not HTTP"),
        "slow": ("timeout", "nothing came or went for 3 s"),
    },
    "upload": {
        "404": ("bad_answer", "HTTP 404"),
        "429": ("rate_limited", "rate limited"),
        "500": ("bad_answer", "HTTP 500"),
        "501": ("bad_answer", "HTTP 501"),
        "unread-500": ("bad_answer", "HTTP 500"),
        "refused": ("unreachable", "Connection refused"),
        "redirect": ("redirected", "redirected to"),
        "html200": ("bad_answer", "instead of size="),
        "truncate": ("bad_answer", "instead of size="),
        "close": ("bad_answer", "closed without an answer"),
        "never-read": ("unconfirmed", "confirmed 0 of 2 uploads"),
        "slow": ("unconfirmed", "nothing came or went for 3 s"),
    },
}
CASES = [(route, fault, kind, text) for route, faults in FAULTS.items() for fault, (kind, text) in faults.items()]


@pytest.mark.parametrize(("route", "fault", "kind", "text"), CASES, ids=[f"{route}-{fault}" for route, fault, _, _ in CASES])
async def test_a_lie_becomes_a_failure(run: Callable[..., Any], route: str, fault: str, kind: str, text: str) -> None:
    """Whatever the library would have made a number of, or waited for, ends as a failure that names what happened."""
    with StandIn(faults={route: fault}, download_bps=40e6, upload_bps=40e6) as server, pytest.raises(ProbeError) as caught:
        await run(server, download=route == "download", upload=route == "upload")
    assert caught.value.kind == kind
    assert text in caught.value.message
    assert caught.value.engine_version == "speedtest-cli 2.1.3"
    assert "https failed" in caught.value.log


async def test_a_line_that_is_down_is_named(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network says that there is no way, the failure is `line_down`, and http is not tried where https met it."""
    world = World()
    world.servers = [{**world.servers[0], "url": f"http://{NO_WAY}:1/speedtest/upload.php", "host": f"{NO_WAY}:1"}]
    with StandIn(world=world) as server, pytest.raises(ProbeError, match=r"no test server answered .* Network is unreachable") as caught:
        await run(server)
    assert caught.value.kind == "line_down"
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{NO_WAY}:1")
    with pytest.raises(ProbeError, match="Network is unreachable") as caught:
        await load("speedtest").run(QUICK, nothing)
    assert (caught.value.kind, "trying http" in caught.value.log) == ("line_down", False)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Give the files of a key and of the certificate for www.speedtest.net that it signed itself."""
    key, signed = tmp_path / "key.pem", tmp_path / "signed.pem"
    made = (debian.program("openssl", "usr/bin/openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    names = ("-days", "2", "-subj", "/CN=here", "-addext", "subjectAltName=DNS:www.speedtest.net", "-keyout", key, "-out", signed)
    subprocess.run([*made, *names], check=True, capture_output=True)
    return key, signed


@pytest.mark.parametrize(("status", "kind"), [(403, "blocked"), (429, "rate_limited")])
async def test_who_is_turned_away_over_https_does_not_try_http(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path], status: int, kind: str
) -> None:
    """It is this client that speedtest.net does not serve, over whichever scheme."""
    key, signed = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(signed, key)

    async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await writer.start_tls(context)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        writer.close()

    async with await asyncio.start_server(turn_away, "127.0.0.1", 0) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("http_proxy", f"http://{NO_WAY}:1")
        monkeypatch.setenv("SSL_CERT_FILE", str(signed))
        with pytest.raises(ProbeError, match=f"HTTP {status}") as caught:
            await load("speedtest").run(QUICK, nothing)
    assert (caught.value.kind, "trying http" in caught.value.log) == (kind, False)


async def test_a_few_errors_are_noted_and_many_are_not_believed(run: Callable[..., Any]) -> None:
    """Up to a tenth of a direction's requests may fail; the log says so."""
    with StandIn(faults={"download": "500"}, fault_share=0.08, download_bps=200e6) as server:
        result = await run(server, upload=False)
        assert 100e6 < result.download_bps < 220e6
    assert "downloads at" in result.log
    assert "HTTP 500" in result.log
    with StandIn(faults={"download": "500"}, fault_share=0.2, download_bps=200e6) as server, pytest.raises(ProbeError, match="HTTP 500"):
        await run(server, upload=False)


@pytest.mark.parametrize(("route", "fault"), [("download", "hang"), ("upload", "never-read")])
async def test_a_request_that_hangs_costs_the_rate_nothing(run: Callable[..., Any], route: str, fault: str) -> None:
    """The library divides by the time that it waits for it as well; what is left is not as sure as the rest."""
    with StandIn(faults={route: fault}, fault_share=0.06, download_bps=120e6, upload_bps=120e6) as server:
        result = await run(server, download=route == "download", upload=route == "upload")
        passed = server.down if route == "download" else server.up
        assert getattr(result, f"{route}_bps") == pytest.approx(passed.mean_bps(), rel=0.2)
    assert 1.5 < result.details[f"{route}_hung_s"] < 5
    assert result.confidence == "indicative"
    assert "hung do not count" in result.log


async def test_a_slow_line_is_not_taken_for_a_dead_server(run: Callable[..., Any]) -> None:
    """Where no upload is complete in time, small ones show that the server reads, and how fast."""
    with StandIn(upload_bps=3e6) as server:
        # eight uploads of 512 kB at once, as after a download, of which none is done before the sockets time out
        server.world.upload.update(threads="8", testlength="2")
        result = await run(server, download=False)
        assert result.upload_bps == pytest.approx(3e6, rel=0.4)
        # both attempts, less the 6 MB that the kernel was still holding when the first was given up
        assert 1e6 < result.upload_bytes < server.up.passed_bytes + 5e6
    assert "in small pieces" in result.log


def altered(part: str, **values: str) -> World:
    """Return a world in which some values of the configuration are nonsense."""
    world = World()
    getattr(world, part).update(values)
    return world


@pytest.mark.parametrize(
    ("world", "text"),
    [
        (altered("client", lat="here"), "Unknown location"),
        (altered("download", threadsperurl="many"), "make no sense"),
        (altered("server_config", threadcount="1000000"), "2000000 threads of download"),
        (altered("download", threadsperurl="1000000"), "1000000 downloads of each size"),
        (altered("download", testlength="0"), "0 seconds of download"),
        (altered("upload", maxchunkcount="1000000"), "bytes of upload"),
        (altered("upload", threads="0"), "0 threads of upload"),
        (altered("upload", ratio="99"), "make no sense"),
        (World(servers=[{"id": "x", "lat": "1", "lon": "1"}]), "make no sense"),
        (World(servers=[]), "names none"),
        (World(servers=[{"id": "1", "lat": "north", "lon": "1"}]), "names none"),
    ],
)
async def test_a_senseless_configuration_is_refused(run: Callable[..., Any], world: World, text: str) -> None:
    """No value of the configuration makes the library crash, hang or fill the memory."""
    with StandIn(world=world) as server, pytest.raises(ProbeError) as caught:
        await run(server, server_ids=[])
    assert caught.value.kind == "bad_answer"
    assert text in caught.value.message


async def test_what_is_no_number_is_absent(run: Callable[..., Any]) -> None:
    """NaN, infinity and far-off places are left out; the measurement stands."""
    client = {"ip": "192.0.2.7", "lat": "nan", "lon": "9999", "isp": "x" * 5_000, "country": ""}
    servers = [{"id": "1001", "name": "  ", "lat": "nan", "lon": "9999", "sponsor": "\x7f\u2028", "cc": "y" * 3_000_000}]
    with StandIn(world=World(client=client, servers=servers)) as server:
        result = await run(server, **NEITHER)
    assert result.latency_s
    assert result.client.model_dump(exclude_none=True) == {"isp": "x" * 1_000, "address": "192.0.2.7"}
    assert result.server.latitude is result.server.longitude is result.server.distance_m is result.server.name is None
    assert result.server.country_code == "y" * 1_000


async def test_an_address_that_is_not_ours_is_misconfigured(run: Callable[..., Any]) -> None:
    """A wrong source address is named before anything is sent."""
    with StandIn() as server:
        with pytest.raises(ProbeError, match=r"source_address 192\.0\.2\.1 is not an address of this machine") as caught:
            await run(server, source_address="192.0.2.1")
        assert server.requests == []
    assert caught.value.kind == "misconfigured"


async def test_the_byte_limit_ends_the_run(run: Callable[..., Any]) -> None:
    """Both directions together: a run stops soon after the limit, and says so."""
    with StandIn(download_bps=40e6, upload_bps=40e6) as server:
        with pytest.raises(ProbeError, match="max_bytes = 1000000") as caught:
            await run(server, max_bytes=1_000_000)
        assert server.down.passed_bytes < 3e6
        assert caught.value.kind == "byte_limit"
        with pytest.raises(ProbeError, match="stopped in the upload"):
            await run(server, max_bytes=6_500_000)


async def test_the_deadline_ends_a_run_that_hangs(aim: Callable[[StandIn], None]) -> None:
    """A download that drips would last for ever: it ends on time, and leaves no process behind."""
    # shorter than a person may ask for
    options = SpeedtestOptions(upload=False).model_copy(update={"deadline_s": 2.0})
    with StandIn(faults={"download": "drip"}) as server:
        aim(server)
        started = time.monotonic()
        with pytest.raises(ProbeError, match="not over after 2 s; its last phase was download") as caught:
            await measure(options, nothing)
        assert time.monotonic() - started < 30
        assert caught.value.kind == "timeout"
        assert processes(speedtest.CHILD) == []


async def test_cancelling_leaves_no_process(aim: Callable[[StandIn], None]) -> None:
    """A cancelled run is over when the cancellation is."""
    with StandIn(faults={"download": "drip"}) as server:
        aim(server)
        task = asyncio.create_task(measure(SpeedtestOptions(), nothing))
        await until(lambda: server.count("download") and processes(speedtest.CHILD))
        child = processes(speedtest.CHILD)[0]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not child.is_running()


async def test_a_killed_runner_takes_its_test_along() -> None:
    """kill -9 of the runner ends the test too: the line is free for the next one."""
    program = "import asyncio; from services.runner.probes import load; asyncio.run(load('speedtest').run({}, lambda *_, **__: None))"
    with StandIn(faults={"download": "drip"}) as server:
        runner = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env={**os.environ, **server.environment()})
        await until(lambda: server.count("download") and processes(speedtest.CHILD))
        child = processes(speedtest.CHILD)[0]
        runner.kill()
        await runner.wait()
        await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def library(directory: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    """Put a module `speedtest` before the real one; its `build_opener` does what is given."""
    connections = "SpeedtestHTTPConnection = SpeedtestHTTPSConnection = object\nbuild_opener = None\n"
    errors = "class NoMatchedServers(Exception): pass\nclass Speedtest:\n    def __init__(self, **_):\n        "
    (directory / "speedtest.py").write_text(f"import os, sys, threading, time\n{connections}{errors}{inside}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(directory), *sys.path]))


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        (
            "sys.stderr.write('out of luck\\n'); sys.stderr.flush(); os._exit(3)",
            "ended with exit code 3 in its phase connecting.*: out of luck",
        ),
        ("os.kill(os.getpid(), 11)", "was killed by signal 11"),
        ("bytearray(2**31)", "more than 1024 MB of memory"),
        ("threading.Thread(target=lambda: 1 / 0).start(); time.sleep(60)", "a thread of the library died: ZeroDivisionError"),
        ("threading.Thread(target=lambda: bytearray(2**31)).start(); time.sleep(60)", "more than 1024 MB of memory"),
        ("sys.exit('enough')", "ended with exit code 1.*: enough"),
    ],
)
async def test_a_child_that_dies_is_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, text: str) -> None:
    """A process that ends without an answer, or runs out of memory, is a failure with its last words."""
    library(tmp_path, monkeypatch, inside)
    with pytest.raises(ProbeError, match=text) as caught:
        await load("speedtest").run({}, nothing)
    assert caught.value.kind == "crashed"
    assert processes(speedtest.CHILD) == []


async def test_what_the_library_prints_is_not_taken_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages have a way of their own; print goes to the log, of which only the end is kept."""
    library(tmp_path, monkeypatch, "print('{\"type\": \"answer\"}\\n' + 'x' * 10**7 + ' the end', flush=True); os._exit(1)")
    with pytest.raises(ProbeError) as caught:
        await load("speedtest").run({}, nothing)
    assert caught.value.kind == "crashed"
    assert len(caught.value.log) <= 8_000
    assert caught.value.log.endswith("the end")


async def test_endless_complaints_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a child writes to stderr no more than the end is ever held."""
    library(tmp_path, monkeypatch, "[os.write(2, b'x' * 10**6) for _ in range(200)]; os._exit(1)")
    tracemalloc.start()
    try:
        with pytest.raises(ProbeError, match="exit code 1"):
            await load("speedtest").run({}, nothing)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("while True: print('x' * 1000000)", "a line longer than 65536 bytes"),
        ('while True: print(\'{"type": "log", "text": "again"}\')', "more than 4194304 bytes"),
        ("print('hello', flush=True); import time; time.sleep(60)", "what is no message of its own"),
        ('print(\'{"type": "answer", "latency_s": -1, "server": {}, "client": {}, "details": {}}\')', "what is no message of its own"),
    ],
)
async def test_a_child_gone_mad_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, text: str) -> None:
    """What a child writes is read within limits, and only if it is a message."""
    (tmp_path / "gone_mad.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(speedtest, "CHILD", "gone_mad")
    with pytest.raises(ProbeError, match=text) as caught:
        await load("speedtest").run({}, nothing)
    assert caught.value.kind == "crashed"
    assert processes(speedtest.CHILD) == []


async def test_nothing_outside_of_the_answer_is_warned_about(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's deprecations neither fail a run nor fill its log, whatever the environment says of warnings."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with StandIn() as server:
        result = await run(server, **NEITHER)
    assert "Warning" not in result.log
