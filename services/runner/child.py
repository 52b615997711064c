"""A child process that measures, as its parent sees it: started, listened to within limits, and ended.

The other side of it is `services.runner.confined`.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections import deque
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from services.runner.probes import Report
from shared.errors import ProbeError

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


Answer = TypeVar("Answer", bound=BaseModel)
"""What a child measured: a model whose `type` is the literal `answer`."""


class Child(Generic[Answer]):
    """The child process, and what it has said so far."""

    def __init__(self, module: str, name: str, answer: type[Answer], report: Report) -> None:
        """Name the module to run, what people call the process, and the model of its answer."""
        self.phase = "connecting"
        self._module, self._name = module, name
        messages: Any = Annotated[Progress | Log | Failure | answer, Field(discriminator="type")]
        self._message: TypeAdapter[Any] = TypeAdapter(messages)
        self._report = report
        self._said: deque[str] = deque(maxlen=200)
        self._errors = b""
        self._process: Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def measure(self, order: dict[str, Any], deadline_s: float, engine_version: str) -> Answer:
        """Run the child within a deadline and return its answer; when this returns or is cancelled, the child is gone.

        Raises: ProbeError, whatever it was that came instead.
        """
        try:
            async with asyncio.timeout(deadline_s):
                last = await self._run(order, deadline_s + 5)
        except TimeoutError:
            late = f"the run was not over after {deadline_s:g} s; its last phase was {self.phase}"
            last = Failure(type="failure", kind="timeout", message=late)
        finally:
            await self._end()
        if last is None:
            last = self._crashed()
        if isinstance(last, Failure):
            raise ProbeError(last.kind, last.message, log=self.log(), engine_version=engine_version)
        return last

    def log(self) -> str:
        """Return the end of what the child said, its stderr last."""
        errors = self._errors.decode(errors="replace").strip()
        return "\n".join([*self._said, *([errors] if errors else [])]).replace("\x00", "")[-LOG_CHARACTERS:]

    async def _run(self, order: dict[str, Any], seconds: float) -> Answer | Failure | None:
        """Start the child and return its last word, None when it ends without one.

        Should it outlive this process, it ends itself after so many seconds.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            # what a library does that Python deprecates is not for the eyes of people who measure
            *(sys.executable, "-W", "ignore", "-m", self._module),
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

    async def _end(self) -> None:
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

    def _crashed(self) -> Failure:
        """Return the failure of a child that ended without a word."""
        code = self._process.returncode if self._process else None
        errors = self._errors.decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        tail = f": {errors[-1][:300]}" if errors else ""
        return Failure(
            type="failure", kind="crashed", message=f"the {self._name} process {how} in its phase {self.phase}, without an answer{tail}"
        )

    async def _listen(self, stdout: StreamReader) -> Answer | Failure | None:
        total = 0
        while True:
            try:
                line = await stdout.readline()
            except ValueError:
                return self._mad(f"wrote a line longer than {LINE_BYTES} bytes")
            total += len(line)
            if not line:
                return None
            if total > OUTPUT_BYTES:
                return self._mad(f"wrote more than {OUTPUT_BYTES} bytes")
            try:
                message = self._message.validate_json(line)
            except ValidationError as error:
                return self._mad(f"wrote what is no message of its own: {error.errors()[0]['msg']}")
            if isinstance(message, Log):
                self._said.append(message.text)
            elif not isinstance(message, Progress):
                return cast("Answer | Failure", message)
            else:
                self.phase = message.phase
                self._report(message.phase, fraction=message.fraction, rate_bps=message.rate_bps)

    async def _keep_errors(self, stderr: StreamReader) -> None:
        while some := await stderr.read(LINE_BYTES):
            self._errors = (self._errors + some)[-LOG_CHARACTERS:]

    def _mad(self, what: str) -> Failure:
        return Failure(type="failure", kind="crashed", message=f"the {self._name} process {what}")
