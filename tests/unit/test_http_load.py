"""A load of the engine `http` on a line that a clock stands in for."""

import socket
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest

from services.runner.confined import Channel, Failed
from services.runner.http_child.connection import Connection, Endpoint
from services.runner.http_child.load import Limits, Load
from services.runner.http_child.streams import Stream
from services.runner.http_child.tasks import Loop, Steps, Wait
from services.runner.http_child.tcp_info import TcpInfo


class Silent(Channel):
    """Has no parent to tell."""

    def __init__(self) -> None:
        """Leave stdout alone."""

    def send(self, kind: str, /, **content: Any) -> None:
        """Tell nobody."""


def idle(connection: Connection) -> Steps[None]:
    """Carry nothing."""
    try:
        yield Wait(time.monotonic() + 60)
    finally:
        connection.close()


def stream(kind: type[Connection] = Connection) -> Stream:
    """Return a stream that the server takes part in."""
    connection = kind(Endpoint("here", socket.AF_INET, ("127.0.0.1", 1), timeout_s=1))
    return Stream(connection, idle(connection), warm=True)


def limits(**those_of_a_test: Any) -> Limits:
    """Return limits of a line of 10 ms with bytes enough."""
    usual = {"max_bytes": 10**12, "slice_s": 0.05, "first_streams": 2, "most_streams": 16, "silence_s": 5, "round_trip_s": 0.01}
    return Limits(**{**usual, **those_of_a_test})


def test_a_warm_up_leaves_bytes_to_measure_with() -> None:
    """On a line that goes on getting faster until the bytes are used up, the rest of them gives a figure, not a failure."""
    began = time.monotonic()
    grows = limits(
        longest_s=30,
        shortest_s=2.5,
        max_bytes=90_000_000,
        most_streams=2,
        round_trip_s=0.3,  # the rate grows by a fifth in two of them: slow start, as far as can be told
        added_s=lambda _: None,
        carried=lambda: int(17_320_000 * (time.monotonic() - began) ** 1.5),
    )
    loaded = Load(Loop(), "download", stream, grows, Silent()).run(lambda _: True)
    assert loaded.stopped_by == "bytes"
    assert 1.9 < loaded.warm_up_s < 2.6
    assert 290e6 < loaded.rate_bps < 370e6


class Losing(Connection):
    """Finds a packet missing each time somebody looks."""

    holes = 0

    def info(self) -> TcpInfo:
        """Return what the kernel would say."""
        self.holes += 1
        return replace(TcpInfo(*(0 for _ in fields(TcpInfo))), rcv_ooopack=self.holes)


def test_streams_that_come_too_late_to_be_measured_are_not_added() -> None:
    """Where loss is found to hold the streams back when the time to warm up is over, what was measured stays, and says so."""
    began = time.monotonic()
    loses = limits(
        longest_s=3,
        shortest_s=2.5,
        added_s=lambda _: 0.0 if time.monotonic() - began > 2 else None,
        carried=lambda: int(12_500_000 * (time.monotonic() - began)),
    )
    loaded = Load(Loop(), "download", partial(stream, Losing), loses, Silent()).run(lambda _: True)
    assert (loaded.rising, loaded.streams) == (True, 4)
    assert loaded.warm_up_s < 1.8
    assert 97e6 < loaded.rate_bps < 103e6


@pytest.mark.parametrize(("last_bps", "added_s", "rising"), [(100e6, None, False), (200e6, 0.001, True), (200e6, 0.05, False)])
def test_streams_that_never_start_do_not_say_what_they_bring(last_bps: float, added_s: float | None, rising: bool) -> None:
    """A server that leaves the last streams waiting leaves nothing to compare before time is up: what is measured with them tells.

    More than fewer streams brought is no loss where a queue stands in front of the line, which is full then.
    """
    began = time.monotonic()
    made: list[Stream] = []

    def make() -> Stream:
        made.append(replace(stream(), warm=len(made) < 4))
        return made[-1]

    def carried() -> int:
        """Count 50 Mbit/s of two streams, then 100 Mbit/s of four, then those of eight."""
        since = time.monotonic() - began
        return int((50e6 * min(since, 0.6) + 100e6 * max(0, min(since, 1.6) - 0.6) + last_bps * max(0, since - 1.6)) / 8)

    waits = limits(
        longest_s=4,
        shortest_s=1,
        added_s=lambda _: added_s,
        carried=carried,
    )
    loaded = Load(Loop(), "download", make, waits, Silent()).run(lambda _: True)
    assert (loaded.rising, loaded.streams, loaded.left_waiting) == (rising, 4, 4)
    assert loaded.rate_bps == pytest.approx(last_bps, rel=0.03)


@pytest.mark.parametrize(("added_s", "streams", "rising"), [(0.05, 2, False), (None, 2, False), (0.001, 16, True)])
def test_a_slow_line_is_full_only_behind_a_queue(added_s: float | None, streams: int, *, rising: bool) -> None:
    """A server that gives each connection little is asked by more of them, up to the most, and then says so."""
    began = time.monotonic()
    made: list[float] = []

    def make() -> Stream:
        made.append(time.monotonic() - began)
        return stream()

    def carried() -> int:
        """Count 0.8 Mbit/s of each stream."""
        return sum(int(100_000 * (time.monotonic() - began - since)) for since in made)

    slow = limits(longest_s=6, shortest_s=0.2, slice_s=0.01, added_s=lambda _: added_s, carried=carried)
    loaded = Load(Loop(), "upload", make, slow, Silent()).run(lambda _: True)
    assert (loaded.streams, loaded.rising) == (streams, rising)
    assert loaded.rate_bps == pytest.approx(0.8e6 * streams, rel=0.02)


STARVED = """
import os, subprocess, sys, time
from services.runner.http_child.processor import wanted_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    began, used, wanted = time.monotonic(), time.process_time(), wanted_s()
    while time.monotonic() < began + 0.5:
        pass
    took = time.monotonic() - began
    print((time.process_time() - used) / took, (wanted_s() - wanted) / took)
finally:
    other.kill()
    other.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how long a process waited for a processor")
def test_a_processor_that_others_have_was_wanted_all_the_same() -> None:
    """Of one that it shares with another process it gets a part, and wanted all of it."""
    told = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=True).stdout.split()
    used, wanted = map(float, told)
    assert used < 0.8
    assert 0.9 < wanted < 1.1


@pytest.mark.parametrize(("silence_s", "reason"), [(0.5, "not one byte arrived for 0.5 s"), (5, "not one byte arrived for ")])
@pytest.mark.parametrize(("phase", "kind"), [("download", "timeout"), ("upload", "unconfirmed")])
def test_probes_do_not_pass_for_a_load(phase: str, kind: str, silence_s: float, reason: str) -> None:
    """Where they alone go on, there is no rate: be it that nothing else moved for too long, or for all that was measured."""
    began = time.monotonic()
    probes_only = limits(
        longest_s=2,
        shortest_s=0.5,
        silence_s=silence_s,
        added_s=lambda _: None,
        carried=lambda: 0,
        beside=lambda: int(20_000 * (time.monotonic() - began)),
    )
    with pytest.raises(Failed, match=f"the {phase} stood still: {reason}") as caught:
        Load(Loop(), phase, stream, probes_only, Silent()).run(lambda _: False)
    assert caught.value.kind == kind
