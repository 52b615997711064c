"""A program of the user's own, run to its end within limits, and ended with whatever it started."""

import asyncio
import contextlib
import os
import shutil
import signal
from asyncio import StreamReader
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from shared.errors import ProbeError

OUTPUT_BYTES = 4 * 2**20
PIECE_BYTES = 65_536


@dataclass(frozen=True)
class Ended:
    """What a program said, and its exit code (negative: the signal that ended it)."""

    code: int
    output: str
    errors: str


async def run(name: str, *arguments: str, within_s: float, install: str) -> Ended:
    """Run a program that is found on PATH, and return what it said.

    It speaks English whatever the machine speaks, and gets no input. When this ends, however, its process group has ended.
    Raises: ProbeError `misconfigured` (with `install`) when there is none, `timeout`, `bad_answer` when it says more than 4 MiB.
    """
    path = shutil.which(name)
    if path is None:
        raise ProbeError("misconfigured", f"there is no program {name} on the PATH of this runner: {install}")
    try:
        process = await asyncio.create_subprocess_exec(
            *(path, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,  # a group of its own: it is ended with whatever it started
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise ProbeError("misconfigured", f"{path} cannot be run ({error.strerror}): {install}") from None
    try:
        async with asyncio.timeout(within_s):
            output, errors = await _read(process, name)
            code = await process.wait()
    except TimeoutError:
        raise ProbeError("timeout", f"{name} was not over after {within_s:g} s") from None
    finally:
        await _end(process)
    return Ended(code, output.decode(errors="replace"), errors.decode(errors="replace"))


async def _read(process: Process, name: str) -> Sequence[bytes]:
    async def all_of(stream: StreamReader | None) -> bytes:
        said = b""
        while some := await cast("StreamReader", stream).read(PIECE_BYTES):
            said += some
            if len(said) > OUTPUT_BYTES:
                raise ProbeError("bad_answer", f"{name} said more than {OUTPUT_BYTES} bytes: it has gone mad")
        return said

    # gather, not a group: the first error is the one to tell, and both end with the process, which is ended next
    return await asyncio.gather(all_of(process.stdout), all_of(process.stderr))


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    # first the pipes, to their ends: asyncio calls no process over whose output is still unread
    for stream in (process.stdout, process.stderr):
        with contextlib.suppress(RuntimeError):  # the reader that was cut short by the other one's error reads on
            while await cast("StreamReader", stream).read(PIECE_BYTES):
                pass
    await process.wait()
