"""The installed `refresher` as a person runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import stop

REFRESHER = Path(sys.executable).parent / "refresher"


class Refresher:
    """The command line with an environment of its own; without one it finds no system."""

    def __init__(self, **environment: str) -> None:
        nowhere = {
            "REFRESHER_API_URL": "http://127.0.0.1:9",
            "REFRESHER_NATS_URL": "nats://127.0.0.1:9",
            "REFRESHER_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing",
            "REFRESHER_DATA_DIR": "/nonexistent",
        }
        self.environment = {**os.environ, **nowhere, **environment}

    def __call__(self, *arguments: str | bytes, code: int | None = 0) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, which must be `code`; None for any."""
        command: Sequence[str | bytes] = [str(REFRESHER), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> list[Any]:
        """Run a command with `--json` and return the value of each line."""
        return [json.loads(line) for line in self(*arguments, "--json", code=code).stdout.splitlines()]

    @contextmanager
    def running(self, *arguments: str, **redirections: Any) -> "Iterator[subprocess.Popen[str]]":
        """Start a command and stop it at the end of the block, if it has not ended by itself."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **redirections}
        process = subprocess.Popen([str(REFRESHER), *arguments], env=self.environment, text=True, **pipes)
        try:
            yield process
        finally:
            stop(process)  # type: ignore[arg-type] # of text or of bytes: it is only stopped
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
