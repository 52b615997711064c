"""Waiting for what was started: servers until they listen, services until they say that they are ready."""

import asyncio
import time
from pathlib import Path

from services.embedded import first_run
from services.embedded.children import Child
from shared.errors import Unavailable

READY_WITHIN_S = 60.0
TOO_MANY_DEATHS = 3
"""A server that died this often before it listened will not come up by itself."""


async def until_listening(child: Child) -> None:
    """Wait until a server of our own takes connections.

    Raises: Unavailable when it does not in time, or dies again and again.
    """
    name, log, port = child.program.name, child.program.log, child.program.port
    end = time.monotonic() + READY_WITHIN_S
    while True:
        if child.deaths >= TOO_MANY_DEATHS:
            raise Unavailable(f"{name} ends again and again: {_last_line(log)} (see {log})")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 5)
        except (OSError, TimeoutError) as error:
            if time.monotonic() > end:
                raise Unavailable(f"{name} does not answer at 127.0.0.1:{port}: {str(error) or 'timeout'}; see {log}") from None
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return


async def until_ready(name: str, url: str, foreign: tuple[str, ...]) -> None:
    """Wait until a service says that it is ready; `foreign` are the servers of others that it may be waiting for.

    Raises: Unavailable when it does not in time.
    """
    end = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            await asyncio.to_thread(first_run.request, f"{url}/health/ready")
        except OSError as error:  # URLError is one of these
            if time.monotonic() > end:
                hint = f"; it uses {' and '.join(foreign)}: does that answer?" if foreign else ""
                raise Unavailable(f"the {name} is not ready after {READY_WITHIN_S:.0f} s: {error}{hint}") from None
            await asyncio.sleep(0.1)
            continue
        return


def _last_line(log: Path | None) -> str:
    lines = log.read_text(errors="replace").split("\n") if log and log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")
