"""How child processes are kept running."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.embedded import supervisor
from services.embedded.children import Child
from services.embedded.program import Program

FOREVER = (sys.executable, "-c", "import signal; signal.pause()")


async def until(condition: Callable[[], object], deadline_s: float = 15) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_program_that_cannot_be_started_for_a_while_is_tried_again(tmp_path: Path) -> None:
    """A binary that is away, as during an upgrade, is told, and runs as soon as it is back."""
    binary, away = tmp_path / "program", tmp_path / "away"
    binary.write_text("#!/bin/sh\nexec sleep 1000\n")
    binary.chmod(0o755)
    said: list[str] = []
    child = Child(Program("program", (str(binary),)), said.append, lambda: said.append("given up"))
    await child.start()
    try:
        binary.rename(away)
        child.kill()
        await until(lambda: any("cannot be started" in line for line in said))
        away.rename(binary)
        await until(lambda: child.pid)
        assert "given up" not in said
    finally:
        await child.stop()


async def test_a_child_that_is_not_kept_any_more_ends_everything() -> None:
    """An unforeseen error while keeping a child is not lost: without it the system is not whole."""
    given_up = asyncio.Event()

    def say(line: str) -> None:
        if "restarting" in line and "not kept" not in line:
            raise RuntimeError(line)

    child = Child(Program("program", FOREVER), say, given_up.set)
    await child.start()
    child.kill()
    await asyncio.wait_for(given_up.wait(), 10)
    await child.stop()


async def test_what_was_let_go_is_not_restarted() -> None:
    """Once everything is to stop, nothing comes back: not even what is killed."""
    said: list[str] = []
    child = Child(Program("program", FOREVER), said.append, lambda: None)
    await child.start()
    child.let_go()
    child.kill()
    await child.stop()
    assert child.pid is None
    assert said == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_the_death_of_the_supervisor_stops_a_child_by_its_own_signal(tmp_path: Path) -> None:
    """PostgreSQL would wait for its sessions on SIGTERM; its fast shutdown is SIGINT."""
    log = tmp_path / "log"
    log_path = f"pathlib.Path({str(log)!r})"
    catch = "import signal; signal.signal(2, lambda *_: print('SIGINT', flush=True) or exit(0)); print('up', flush=True); signal.pause()"
    parent = (
        "import asyncio, pathlib, sys\n"
        "from services.embedded.children import Child\n"
        "from services.embedded.program import Program\n"
        "async def main():\n"
        f"    await Child(Program('x', (sys.executable, '-c', {catch!r}), log={log_path}, stop_signal=2), print, print).start()\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        for text in ("up", "SIGINT"):
            end = time.monotonic() + 15
            while text not in (log.read_text() if log.exists() else ""):
                assert time.monotonic() < end, text
                time.sleep(0.02)
            process.kill()


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `refresher up | head -2`: it goes on, and its exit is clean."""
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.closing(os.fdopen(writer, "w")) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        supervisor.say("one")
        supervisor.say("two")
        monkeypatch.undo()
