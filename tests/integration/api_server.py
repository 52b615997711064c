"""The API as a child process, for tests that need a real server."""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

from services.api.app import build
from services.api.settings import ApiSettings
from services.embedded.program import Program
from tests import ports
from tests.http import plain_client, wait_until_ready
from tests.servers import start, stop


class Api:
    """A running `python -m services.api`."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.url, self.process, self.log = url, process, log

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return a client of it that goes around any proxy."""
        return plain_client(self.url, **options)


@contextlib.contextmanager
def api_server(nats_url: str, database_url: str, directory: Path, *, ready: bool = True, **environment: str) -> Iterator[Api]:
    """Run the API against these servers until the end of the block.

    Waits until it is ready, or with `ready=False` only until it answers.
    """
    port = ports.take()
    log = directory / "logs" / "api.log"
    program = Program(
        "api",
        (sys.executable, "-m", "services.api"),
        {
            "REFRESHER_NATS_URL": nats_url,
            "REFRESHER_DATABASE_URL": database_url,
            "REFRESHER_API_PORT": str(port),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", ""),
            **environment,
        },
        log=log,
    )
    api = Api(f"http://127.0.0.1:{port}", start(program), log)
    try:
        wait_until_ready(f"{api.url}/health/{'ready' if ready else 'live'}", api.process, log)
        yield api
    finally:
        stop(api.process)


@contextlib.asynccontextmanager
async def in_process(nats_url: str, database_url: str, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run the API inside of this process and give a client of it: quick, but answers arrive whole, never as a stream."""
    service, app = build(ApiSettings(nats_url=nats_url, database_url=database_url, **settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
        assert not service.failed.is_set()
