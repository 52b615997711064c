"""The child process of the engine `speedtest`, as its parent sees it: started, listened to within limits, and ended."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections import deque
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.runner.probes import Report
from shared.events import Bytes, Positive

CHILD = "services.runner.speedtest_child"
LOG_CHARACTERS = 8_000
LINE_BYTES = 65_536
OUTPUT_BYTES = 4 * 2**20
"""A child that says more has gone mad; ten minutes of progress are 400 kB."""
GOODBYE_S = 1.0
"""For a child that has answered, to end by itself."""


class Progress(BaseModel):
    """How far it is."""

    type: Literal["progress"]
    phase: Annotated[str, Field(max_length=100)]
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    rate_bps: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Log(BaseModel):
    """A line for the log."""

    type: Literal["log"]
    text: Annotated[str, Field(max_length=1_000)]


class Failure(BaseModel):
    """Why there is no measurement."""

    type: Literal["failure"]
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,62}$")]
    message: Annotated[str, Field(min_length=1, max_length=1_000)]


class Answer(BaseModel):
    """The measurement; what the servers said of themselves is as they said it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["answer"]
    latency_s: Positive
    download_bps: Positive | None = None
    download_bytes: Bytes | None = None
    upload_bps: Positive | None = None
    upload_bytes: Bytes | None = None
    server: dict[str, str]
    client: dict[str, str]
    details: dict[str, Any]


_MESSAGE: TypeAdapter[Progress | Log | Failure | Answer] = TypeAdapter(
    Annotated[Progress | Log | Failure | Answer, Field(discriminator="type")]
)


class Child:
    """The child process, and what it has said so far."""

    def __init__(self, report: Report) -> None:
        self.phase = "connecting"
        self._report = report
        self._said: deque[str] = deque(maxlen=200)
        self._errors = b""
        self._process: Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def run(self, order: dict[str, Any], seconds: float) -> Answer | Failure | None:
        """Start the child and return its last word, None when it ends without one.

        Should it outlive this process, it ends itself after so many seconds.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            # the library is full of what Python deprecates: not for the eyes of people who measure
            *(sys.executable, "-W", "ignore", "-m", CHILD),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=LINE_BYTES,
            start_new_session=True,  # a group of its own: it is ended with whatever it started
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # each arena reserves 64 MB of the address space it may have
        )
        self._listening = asyncio.create_task(self._keep_errors(cast("StreamReader", process.stderr)))
        stdin = cast("StreamWriter", process.stdin)
        with contextlib.suppress(ConnectionError):  # it has died already: its exit code says more
            stdin.write(json.dumps({"parent": os.getpid(), "seconds": seconds, **order}).encode())
            await stdin.drain()
            stdin.close()
        last = await self._listen(cast("StreamReader", process.stdout))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GOODBYE_S)
        return last

    async def end(self) -> None:
        """Kill whatever is left of the child's process group and wait until it is gone."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
        # first the pipes, to their ends: asyncio calls no process over whose output is still unread
        stdout = cast("StreamReader", process.stdout)
        while await stdout.read(LINE_BYTES):
            pass
        if self._listening:
            await self._listening
        await process.wait()

    def log(self) -> str:
        """Return the end of what the child said, its stderr last."""
        errors = self._errors.decode(errors="replace").strip()
        return "\n".join([*self._said, *([errors] if errors else [])]).replace("\x00", "")[-LOG_CHARACTERS:]

    def crashed(self) -> Failure:
        """Return the failure of a child that ended without a word."""
        code = self._process.returncode if self._process else None
        errors = self._errors.decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        tail = f": {errors[-1][:300]}" if errors else ""
        return Failure(
            type="failure", kind="crashed", message=f"the speedtest process {how} in its phase {self.phase}, without an answer{tail}"
        )

    async def _listen(self, stdout: StreamReader) -> Answer | Failure | None:
        total = 0
        while True:
            try:
                line = await stdout.readline()
            except ValueError:
                return _mad(f"wrote a line longer than {LINE_BYTES} bytes")
            total += len(line)
            if not line:
                return None
            if total > OUTPUT_BYTES:
                return _mad(f"wrote more than {OUTPUT_BYTES} bytes")
            try:
                message = _MESSAGE.validate_json(line)
            except ValidationError as error:
                return _mad(f"wrote what is no message of its own: {error.errors()[0]['msg']}")
            if isinstance(message, Answer | Failure):
                return message
            if isinstance(message, Log):
                self._said.append(message.text)
            else:
                self.phase = message.phase
                self._report(message.phase, fraction=message.fraction, rate_bps=message.rate_bps)

    async def _keep_errors(self, stderr: StreamReader) -> None:
        while some := await stderr.read(LINE_BYTES):
            self._errors = (self._errors + some)[-LOG_CHARACTERS:]


def _mad(what: str) -> Failure:
    return Failure(type="failure", kind="crashed", message=f"the speedtest process {what}")
