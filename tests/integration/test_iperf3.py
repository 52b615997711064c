"""The engine `iperf3`: the real iperf3 of Debian on both ends, over loopback, with little data."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.runner.probes import load
from shared.errors import ProbeError
from shared.events import Measurement
from tests import iperf3, ports


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the program, which is then the one on PATH; everything is said in another language than English, where there is one."""
    installed = iperf3.install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    return installed


def a_script(directory: Path, text: str) -> None:
    """Put a program of this text in the place of iperf3."""
    (directory / "iperf3").write_text(f"#!/bin/sh\n{text}\n")


async def run(port: int, **options: Any) -> Measurement:
    """Run the engine."""
    return await load("iperf3").run({"host": "127.0.0.1", "port": port, "seconds": 1, **options}, lambda *_, **__: None)


async def failure(port: int, **options: Any) -> ProbeError:
    """Run the engine and return how it fails; nothing that it started is left."""
    with pytest.raises(ProbeError) as caught:
        await run(port, **options)
    assert children() == []
    return caught.value


def children() -> list[str]:
    """Return the command lines of iperf3 clients that this process has started."""
    found = psutil.Process().children(recursive=True)
    return [" ".join(each.cmdline()) for each in found if "--client=127.0.0.1" in " ".join(each.cmdline())]


def is_talked_to(port: int) -> bool:
    """Return whether a connection to a port is open: whoever comes next, comes second."""
    return any(each.status == "ESTABLISHED" and each.laddr.port == port for each in psutil.net_connections("tcp"))


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.02)


async def test_both_directions_are_measured(program: Path) -> None:
    """The receiver's rate and bytes of each; no latency, for iperf3 knows none of an idle line, and no loss of packets over TCP."""
    with iperf3.serving(program) as port:
        result = await run(port, streams=2)
    for rate_bps, carried in ((result.download_bps, result.download_bytes), (result.upload_bps, result.upload_bytes)):
        assert rate_bps is not None
        assert carried is not None
        assert rate_bps == pytest.approx(carried * 8, rel=0.1)  # for a second
        assert rate_bps > 100e6
    assert (result.latency_s, result.jitter_s, result.packet_loss) == (None, None, None)
    assert result.server.host == f"127.0.0.1:{port}"
    assert result.engine_version
    assert result.engine_version.startswith("iperf 3.")
    assert (result.details["protocol"], result.details["streams"]) == ("tcp", 2)
    assert {"congestion", "retransmits", "cpu_percent", "server_cpu_percent"} <= result.details["upload"].keys()


@pytest.mark.parametrize("direction", ["download", "upload"])
async def test_one_direction_is_enough(program: Path, direction: str) -> None:
    """The other is absent; a UDP test of a rate tells of loss and jitter, and gives no rate out for the line's."""
    other = "upload" if direction == "download" else "download"
    with iperf3.serving(program) as port:
        result = await run(port, udp_bps=20e6, streams=2, **{other: False})
    assert (result.download_bps, result.upload_bps) == (None, None)
    assert result.packet_loss is not None
    arrived = 1 - result.packet_loss  # a busy machine drops some, whose bytes are not counted
    assert 0.5 < arrived <= 1
    assert result.jitter_s is not None
    assert 0 <= result.jitter_s < 0.01
    assert getattr(result, f"{other}_bytes") is None
    assert getattr(result, f"{direction}_bytes") == pytest.approx(20e6 / 8 * arrived, rel=0.1)
    assert result.details[direction]["received_bps"] == pytest.approx(20e6 * arrived, rel=0.1)
    assert other not in result.details


async def test_failures_are_told_apart(program: Path) -> None:
    """No server, no such name, an address of another machine, a server that is busy, one that hangs up."""
    nobody = await failure(ports.take())
    assert (nobody.kind, "Connection refused" in nobody.message) == ("unreachable", True)
    assert nobody.engine_version
    assert (await failure(ports.take(), host="nosuch.invalid")).kind == "unreachable"
    foreign = await failure(ports.take(), source_address="192.0.2.99")
    assert (foreign.kind, "Cannot assign requested address" in foreign.message) == ("misconfigured", True)
    with iperf3.serving(program) as port:
        first = asyncio.create_task(run(port, seconds=3, upload=False, udp_bps=1e6))
        await until(lambda: is_talked_to(port))
        busy = await failure_beside(first, port)
        await first
    assert busy.kind == "busy"
    with iperf3.serving(program, "--server-bitrate-limit", "1M") as port:  # it hangs up without a word
        assert (await failure(port, udp_bps=50e6)).kind == "truncated"


async def failure_beside(other: "asyncio.Task[Measurement]", port: int) -> ProbeError:
    """Run the engine while another run goes on."""
    with pytest.raises(ProbeError) as caught:
        await run(port)
    assert not other.done()
    return caught.value


async def test_a_server_that_never_answers_times_out(program: Path) -> None:
    """A connection that is accepted and left alone costs the deadline; then the process is gone."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("services.runner.probes.iperf3.GOODBYE_S", 0.2)
            error = await failure(silent.getsockname()[1], timeout_s=0.5)
    assert (error.kind, time.monotonic() - began < 5) == ("timeout", True), error.message


async def test_cancelled_it_leaves_no_process(program: Path) -> None:
    """Nor a child of that process."""
    with iperf3.serving(program) as port:
        running = asyncio.create_task(run(port, seconds=30, udp_bps=1e6))
        await until(children)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert children() == []


async def test_without_the_program_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program is the person's to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await failure(1)
    assert (error.kind, "Debian's package iperf3" in error.message) == ("misconfigured", True)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("echo Segmentation fault >&2; exit 139", "bad_answer", "Segmentation fault"),
        ("exit 3", "bad_answer", "exit code is 3"),
        ("echo '{}'", "bad_answer", "not one byte"),
        ("""echo '{"end": {"sum_received": {"bytes": 0, "bits_per_second": 0}}}'""", "bad_answer", "not one byte"),
        ("""echo '{"end": {"sum_received": {"bytes": -1, "bits_per_second": 5}}}'""", "bad_answer", "bytes"),
        ("""echo '{"error": "test authorization failed"}'""", "blocked", "authorization"),
        ("""echo '{"error": "total required bandwidth is larger than server limit"}'""", "blocked", "server limit"),
        ("""echo '{"error": "the server has terminated"}'""", "truncated", "terminated"),
        ("""echo '{"error": "unable to connect to server: No route to host"}'""", "unreachable", "route"),
        ("""echo '{"error": "unable to connect to server: Network is unreachable"}'""", "line_down", "Network"),
        ("""echo '{"error": "something new"}'""", "bad_answer", "something new"),
        ("yes", "bad_answer", "more than"),
        ("exec sleep 60 & wait", "timeout", "was not over"),
    ],
)
async def test_what_makes_no_sense_is_no_measurement(
    program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, kind: str, said: str
) -> None:
    """A crash, a result without bytes, an unknown error, endless talk, and silence by a child of a script that stands for iperf3."""
    a_script(tmp_path, text)
    monkeypatch.setattr("services.runner.probes.iperf3.GOODBYE_S", 0)
    error = await failure(1, timeout_s=0.5)
    assert (error.kind, said in error.message) == (kind, True), error.message


OF_OLD = """
echo '{"start": {"version": "iperf 3.9"}, "end": {"sum": {"bytes": 1000000, "bits_per_second": 8000000, "jitter_ms": 2,
    "lost_packets": 50, "packets": 1000, "lost_percent": 5}}}'
"""


@pytest.mark.usefixtures("program")
async def test_an_old_iperf3_tells_of_udp_what_was_sent(tmp_path: Path) -> None:
    """Before 3.11 it has no sum of what was received: it is what was sent, less what was lost."""
    a_script(tmp_path, OF_OLD)
    result = await run(1, udp_bps=8e6, upload=False)
    assert (result.packet_loss, result.jitter_s, result.download_bytes) == (0.05, 0.002, 950_000)
    assert result.details["download"]["received_bps"] == 7.6e6
    assert result.engine_version == "iperf 3.9"


def test_a_host_is_no_option_of_the_program() -> None:
    """What begins with a hyphen would be read as one; and a test in no direction is none."""
    assert load("iperf3").wrong({"host": "--logfile=/etc/passwd"})
    assert load("iperf3").wrong({"host": "a b"})
    assert load("iperf3").wrong({"host": "2001:db8::1"}) == []
    assert load("iperf3").wrong({"host": "iperf.example", "download": False, "upload": False})
