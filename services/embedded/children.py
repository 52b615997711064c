"""Child processes: started in sessions of their own, restarted when they die, stopped in order."""

import asyncio
import contextlib
import ctypes
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
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

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and keep it running."""
        self._process = await self._spawn()
        self._keeping = asyncio.create_task(self._keep(self._process), name=self.program.name)

    async def stop(self) -> None:
        """Ask it to stop, wait, and kill it when it will not."""
        if self._keeping:
            self._keeping.cancel()
        if self._process is None or self._process.returncode is not None:
            return
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
            if time.monotonic() - started > STEADY_AFTER_S:
                wait = 0.0
            where = f"; see {self.program.log}" if self.program.log else ""
            self._say(f"{self.program.name} ended ({_told(code)}){where}: restarting{f' in {wait:.0f} s' if wait else ''}")
            await asyncio.sleep(wait)
            wait = min(max(1.0, wait * 2), LONGEST_WAIT_S)
            self._process = process = await self._spawn()

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
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask Linux to end this process when the supervisor is killed; elsewhere it would live on."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _told(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
