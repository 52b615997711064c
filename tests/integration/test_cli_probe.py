"""`refresher probe`: one test in a terminal, without any server."""

import json
import os
import pty
import signal
import time

import pytest

from tests.commands import Refresher


def test_a_measurement_goes_to_stdout() -> None:
    """As pairs for people and as the event's JSON for programs; nothing on stderr when nobody looks."""
    refresher = Refresher()
    assert refresher("probe", "noop").stdout == "engine\tnoop\n"
    done = refresher("probe", "noop", "--option", "seconds=0.1", "--json")
    assert json.loads(done.stdout)["download_bps"] is None
    assert done.stderr == ""


def test_engines_are_listed() -> None:
    """One a line."""
    assert Refresher()("probe", "--list").stdout.splitlines() == ["connectivity", "http", "iperf3", "ndt7", "noop", "ookla", "speedtest"]


def _screen(*arguments: str, sign: signal.Signals | None = None) -> tuple[int, str]:
    """Run a command with a terminal as its stderr and return its exit code and what it showed there; `sign` is sent once it measures."""
    ours, theirs = pty.openpty()
    refresher = Refresher(TERM="xterm-256color", COLUMNS="80")
    with refresher.running(*arguments, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if sign and b"waiting" in shown:  # the engine is at work
                process.send_signal(sign)
                sign = None
        os.close(ours)
        return process.wait(20), shown.decode()


def test_a_terminal_shows_how_it_is_getting_on() -> None:
    """The phase that the engine reports stands beside the bar."""
    code, shown = _screen("probe", "noop", "--option", "seconds=0.5")
    assert code == 0
    assert "waiting" in shown


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_order(sign: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM cancel the engine, so that it can end its own children; not a word of a traceback."""
    before = time.monotonic()
    ended, shown = _screen("probe", "noop", "--option", "seconds=60", sign=sign)
    assert ended == code
    assert "Traceback" not in shown
    assert time.monotonic() - before < 45
