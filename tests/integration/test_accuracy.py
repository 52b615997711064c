"""The testbed that engines are held against (bench/accuracy), and what it says of them on one line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
import pytest

from bench.accuracy import iperf3
from bench.accuracy.engines import ENGINES
from bench.accuracy.lines import parse
from bench.accuracy.outcome import Outcome
from bench.accuracy.testbed import ROOT, SERVER, Bed, NotAllowed, ServerFailed, laid
from bench.accuracy.watch import DIRECTIONS

PROBES = 2_000
ECHO = f"""
import socket
with socket.socket(type=socket.SOCK_DGRAM) as here:
    here.bind(("{SERVER}", 7))
    print("ready", flush=True)
    while True:
        here.sendto(*here.recvfrom(2048))
"""
ASK = f"""
import json, socket, time
with socket.socket(type=socket.SOCK_DGRAM) as here:
    here.connect(("{SERVER}", 7))
    here.settimeout(0.001)
    sent, taken, end = [], [], time.monotonic() + 30
    while time.monotonic() < min(end, sent[-1] + 1 if len(sent) == {PROBES} else end):
        if len(sent) < {PROBES}:
            sent.append(time.monotonic())
            here.send(len(sent).to_bytes(4, "big"))
        try:
            taken.append(-sent[int.from_bytes(here.recv(2048), "big") - 1] + time.monotonic())
        except TimeoutError:
            pass
print(json.dumps(taken))
"""
OWNER = """
import sys, time
from bench.accuracy.lines import parse
from bench.accuracy.testbed import laid
with laid(parse("100/20,10ms")) as bed:
    bed.start("server", "sleep", "600")
    print("laid", flush=True)
    time.sleep(600)
"""


@contextmanager
def line(name: str) -> Iterator[Bed]:
    """Lay a line; skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network namespaces")
    try:
        with laid(parse(name)) as bed:
            yield bed
    except NotAllowed as error:
        pytest.skip(f"no testbed can be made here: {error}")


def held_against_a_line(engine: str) -> Outcome:
    """Measure 100/20 Mbit/s at 10 ms, and hold the engine to what the interface counted in the same seconds."""
    name = "100/20,10ms"
    with line(name) as bed:
        ENGINES[engine].serve(bed)
        outcome = ENGINES[engine].measure(bed)
    assert outcome.failure is None
    for direction in DIRECTIONS:
        figures = outcome.figures[direction]
        assert figures.measured_bps == pytest.approx(figures.counted_bps, rel=0.01)
        assert figures.counted_bps == pytest.approx(parse(name).goodput_bps(direction), rel=0.03)  # a busy machine does not always fill it
    assert outcome.cpu_s > 0
    return outcome


def test_the_reference_is_within_1_percent_of_what_the_interface_counts() -> None:
    """Both directions; and what is counted is what the shaper lets through, less the headers."""
    outcome = held_against_a_line("iperf3")
    assert outcome.wire_bytes > 100e6 / 8 * iperf3.SECONDS


def test_http_is_within_1_percent_of_what_the_interface_counts() -> None:
    """Both directions; the line was full, and its latency is the line's."""
    outcome = held_against_a_line("http")
    assert outcome.latency_s is not None
    assert 0.010 <= outcome.latency_s < 0.016  # a busy machine answers a little later; the queue of the line would add 50 ms


def test_a_line_has_the_delay_and_the_loss_that_were_asked_for() -> None:
    """Datagrams come back after the round-trip time; those that do not are those that the line says it lost."""
    with line("100/20,20ms,2%") as bed:
        echo = bed.start("server", sys.executable, "-c", ECHO, stdout=subprocess.PIPE, text=True)
        assert echo.stdout.readline() == "ready\n"
        ask = bed.start("client", sys.executable, "-c", ASK, stdout=subprocess.PIPE, text=True)
        taken = json.loads(ask.communicate(timeout=60)[0])
        carried = bed.remove()
    lost = carried["up"][1] + carried["down"][1]
    assert len(taken) == PROBES - lost
    assert lost / PROBES == pytest.approx(1 - 0.98**2, abs=0.01)
    assert min(taken) >= 0.020
    assert median(taken) < 0.021


def test_a_server_that_does_not_come_up_is_told_at_once() -> None:
    """With what it said: not after the deadline, and not as an engine that cannot reach it."""
    with line("unshaped") as bed, pytest.raises(ServerFailed, match=r"does not listen on port 9: no such thing"):
        bed.serve(9, sys.executable, "-c", "raise SystemExit('no such ' + 'thing')", deadline_s=600)


def test_a_testbed_does_not_outlive_its_owner() -> None:
    """kill -9 of the process that laid it: the namespaces, and everything that runs in them, are gone."""
    with line("unshaped"):
        pass  # or skip
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout
        assert owner.stdout.readline() == "laid\n"
        processes = psutil.Process(owner.pid).children(recursive=True)
        here = Path("/proc/self/ns/net").stat().st_ino
        assert len({Path(f"/proc/{each.pid}/ns/net").stat().st_ino for each in processes} - {here}) == 3
        assert len(processes) == 5  # a holder each, the delay, and what was started
        owner.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
