"""A file system of one's own that can be filled up and freed again: needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOMY = "4g"
"""More than the streams reserve; memory is only taken for what is written."""


class Disk:
    """A file system in memory. Its size is what changes: nothing has to be written to fill it, and nothing deleted to free it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no room at all."""
        status = os.statvfs(self.path)
        self._resize(str((status.f_blocks - status.f_bfree) * status.f_frsize))

    def free(self) -> None:
        """Give back all the room."""
        self._resize(ROOMY)

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)


@contextmanager
def mounted(path: Path) -> Iterator[Disk]:
    """Give an empty disk at a path; skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a file system of its own")
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOMY},mode=711", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
