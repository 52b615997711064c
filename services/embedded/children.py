"""Child processes: started in sessions of their own, restarted when they die, stopped in order."""

import asyncio
import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import IO

from services.embedded.program import Program

MISCONFIGURED = 78
"""A service's exit code for a wrong setting."""

LONGEST_WAIT_S = 30.0
STEADY_AFTER_S = 60.0
"""Whoever ran this long is restarted at once; whoever dies sooner waits twice as long each time."""
STOP_WITHIN_S = 20.0


class Child:
    """A program that is kept running until it is told to stop."""

    def __init__(self, program: Program, say: Callable[[str], None], give_up: Callable[[], None]) -> None:
        self.program = program
        self._say = say
        self._give_up = give_up
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.deaths = 0
        """How often it ended without being told to."""

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and keep it running."""
        self._process = await self._spawn()
        self._keeping = asyncio.create_task(self._keep(self._process), name=self.program.name)
        self._keeping.add_done_callback(self._kept)

    def let_go(self) -> None:
        """Do not restart it any more."""
        if self._keeping:
            self._keeping.cancel()

    async def stop(self) -> None:
        """Ask it to stop, wait, and kill it when it will not."""
        self.let_go()
        if self._keeping:  # it may be amid a restart
            await asyncio.wait({self._keeping})
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self.program.stop_signal)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            self._say(f"{self.program.name} does not stop: killed")
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it and whatever it started, now."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        wait = 0.0
        while True:
            started = time.monotonic()
            code = await process.wait()
            if code == MISCONFIGURED:  # it has said what is wrong, and would say it again
                self._give_up()
                return
            self.deaths += 1
            if time.monotonic() - started > STEADY_AFTER_S:
                wait = 0.0
            where = f"; see {self.program.log}" if self.program.log else ""
            self._say(f"{self.program.name} ended ({_told(code)}){where}: restarting{f' in {wait:.0f} s' if wait else ''}")
            process, wait = await self._restart(wait)

    async def _restart(self, wait: float) -> tuple[asyncio.subprocess.Process, float]:
        """Start it after `wait` seconds, as often as it takes; return it and how long to wait the next time."""
        while True:
            await asyncio.sleep(wait)
            wait = min(max(1.0, wait * 2), LONGEST_WAIT_S)
            try:
                self._process = await self._spawn()
            except (OSError, subprocess.SubprocessError) as error:  # being upgraded, no memory, a full disk: it may pass
                self._say(f"{self.program.name} cannot be started ({error}): trying again in {wait:.0f} s")
                continue
            return self._process, wait

    def _kept(self, keeping: asyncio.Task[None]) -> None:
        """End everything rather than go on with a program that nobody keeps."""
        if not keeping.cancelled() and (error := keeping.exception()):
            self._give_up()
            self._say(f"{self.program.name} is not kept running any more: {error!r}")

    async def _spawn(self) -> asyncio.subprocess.Process:
        program = self.program
        with contextlib.ExitStack() as stack:
            output: IO[bytes] | None = None
            if program.log:
                program.log.parent.mkdir(mode=0o700, exist_ok=True)
                output = stack.enter_context(program.log.open("ab"))
            return await asyncio.create_subprocess_exec(
                *program.command,
                env={**os.environ, **program.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone, which passes it on in order
                user=program.user,
                group=pwd.getpwnam(program.user).pw_gid if program.user else None,
                extra_groups=[] if program.user else None,
                preexec_fn=partial(_die_with_parent, program.stop_signal) if sys.platform == "linux" else None,
            )


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent(stop_signal: int) -> None:
    """Ask Linux to stop this process when the supervisor is killed; elsewhere it would live on.

    With its own signal: on SIGTERM, PostgreSQL would wait for its sessions, and the next start for PostgreSQL.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, stop_signal)


def _told(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
