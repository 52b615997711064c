"""`refresher up`: start everything, keep it running, stop it in order."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from services.embedded import first_run
from services.embedded.children import Child
from services.embedded.program import Program
from services.embedded.readiness import until_listening, until_ready
from services.embedded.system import System, assemble
from shared.errors import ConfigurationError, RefresherError

NEW_LINE = "\n             "
"""To the next line of a list in the summary."""


def main(data: Path, assemble: Callable[[Path], System] = assemble) -> int:
    """Run a whole system in a data directory until SIGINT or SIGTERM and return the exit code; `assemble` prepares its programs."""
    try:
        with _alone(data):
            return asyncio.run(_Supervisor(data, partial(assemble, data)).run())
    except RefresherError as error:
        sys.stderr.write(f"refresher: {error}\n")
        return 1


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold the data directory against a second copy.

    Raises: ConfigurationError when there is one, or the directory cannot be used.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data / "lock").open("a")
    except OSError as error:
        raise ConfigurationError(f"cannot use {data}: {error.strerror}; set REFRESHER_DATA_DIR to a directory of yours") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another copy runs on {data}{_other(data)}: stop it first, or name another directory with --data-dir"
            ) from None
        yield


def _other(data: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        where = json.loads((data / "run.json").read_text())
        return f" (process {where['pid']}, API at {where['api_url']})"
    return ""


def say(line: str) -> None:
    """Tell the person at the terminal something, if there is anyone left."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # as in `refresher up | head`: what is still in the buffer must not fail again at the exit
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except OSError:  # a terminal that is gone, a full disk: no reason to stop measuring
        pass


class _Supervisor:
    def __init__(self, data: Path, assemble: Callable[[], System]) -> None:
        self._data, self._assemble = data, assemble
        self._children: list[Child] = []
        self._stop = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told_to_stop)
        started = time.monotonic()
        system = await asyncio.to_thread(self._assemble)
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(self._start(system))
        telling: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                system.write(self._data / "run.json")
                telling = asyncio.create_task(self._tell(system, time.monotonic() - started))
                await stopping
            return self._exit_code
        finally:
            say("stopping")
            for task in (starting, telling):
                if task:
                    task.cancel()
            await asyncio.wait({starting})  # it may be amid the start of a child
            self._let_go()
            (self._data / "run.json").unlink(missing_ok=True)
            for child in reversed(self._children):
                await child.stop()
            say("stopped")

    async def _start(self, system: System) -> None:
        for server in [await self._launch(program) for program in system.servers]:
            await until_listening(server)
        for program in system.services:
            await self._launch(program)
        await asyncio.gather(*(until_ready(name, system.url(name), system.foreign) for name in system.ports))

    async def _launch(self, program: Program) -> Child:
        child = Child(program, say, self._give_up)
        self._children.append(child)
        await child.start()
        return child

    async def _tell(self, system: System, took_s: float) -> None:
        """Say where everything is; the first time, set up a schedule and say what its first run brought."""
        api = system.api_url
        marker = self._data / "set-up"
        run_id = None
        try:
            if not marker.exists():
                run_id = await asyncio.to_thread(first_run.set_up, api)
                marker.touch()
            schedules = await asyncio.to_thread(first_run.scheduled, api)
        except (urllib.error.URLError, OSError) as error:
            say(f"refresher: the API at {api} does not answer as it should: {error}")
            return
        say(
            f"\nRefresher runs (started in {took_s:.1f} s).\n"
            f"  API        {api}  (documentation: {api}/docs)\n"
            f"  data       {self._data}\n"
            f"  scheduled  {NEW_LINE.join(schedules) or 'nothing'}\n"
            '  look       refresher results --follow   ·   refresher doctor   ·   eval "$(refresher env)" for the NATS command line\n'
            "  stop       Ctrl-C\n"
        )
        if run_id:
            say(f"refresher: {await first_run.outcome(api, run_id)}")

    def _give_up(self) -> None:
        self._exit_code = 1
        self._stop.set()

    def _let_go(self) -> None:
        """Let no child be restarted, before the first one is stopped: it could be one that another misses."""
        for child in self._children:
            child.let_go()

    def _told_to_stop(self) -> None:
        if self._stop.is_set():  # the second signal: now, not in order
            self._let_go()
            for child in self._children:
                child.kill()
        self._stop.set()
