"""What is measured: Postgres with a year of results, and the two that read it."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nats

from bench.machine import PEERS
from services.embedded.program import Program
from shared.provision import provision
from tests import ports
from tests.integration.api_server import Api, api_server
from tests.servers import Nats, Postgres, start, stop, wait_for_port


@contextmanager
def directory() -> Iterator[Path]:
    """Give a directory that every account may enter, deleted afterwards."""
    path = Path(tempfile.mkdtemp(prefix="refresher-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def postgres_server(data: Path) -> Iterator[str]:
    """Run PostgreSQL as the embedded one is, but with its own default of 128 MB for pages, and give the URL of its database.

    Nothing is synced: what is measured here are reads.
    """
    server = Postgres(data, {"shared_buffers": "128MB", "max_wal_size": "8GB", "fsync": "off"})
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def refresher(database_url: str, data: Path) -> Iterator[Api]:
    """Run the API against this database."""
    server = Nats(data)
    try:
        asyncio.run(_provision(server.url))
        with api_server(server.url, database_url, data) as api:
            yield api
    finally:
        server.stop()


async def _provision(url: str) -> None:
    client = await nats.connect(url)
    await provision(client.jetstream())
    await client.close()


@contextmanager
def django(database_url: str, data: Path) -> Iterator[int]:
    """Run Django under gunicorn, one worker with as many threads as the API has connections, and give its port."""
    parts, port = urlsplit(database_url), ports.take()
    user = {"USER": parts.username, "PASSWORD": parts.password} if parts.username else parse_qs(parts.query)
    environment = {
        "BENCH_DATABASE_URL": database_url,
        "BENCH_DATABASE_HOST": str(parts.hostname),
        "BENCH_DATABASE_PORT": str(parts.port),
        **{f"BENCH_DATABASE_{name}": str(value) for name, value in user.items()},
        "PYTHONPATH": str(Path(__file__).parent),
    }
    command = (
        *(str(PEERS / "gunicorn"), "--workers=1", "--threads=8", "--keep-alive=60", "--timeout=300", "--log-level=warning"),
        *(f"--bind=127.0.0.1:{port}", "--worker-connections=200", "django_peer:application"),
    )
    process = start(Program("django", command, environment, log=data / "logs" / "django.log"))
    try:
        wait_for_port(port)
        yield port
    finally:
        stop(process)
