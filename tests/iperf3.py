"""The real iperf3 of Debian, with the libraries that it needs, and a server of it on loopback."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests import debian, ports
from tests.servers import stop

LIBRARIES = ("libiperf0", "libsctp1")


def install(directory: Path) -> Path:
    """Write a program `iperf3` into a directory that runs Debian's, and return it."""
    program = debian.program("iperf3", "usr/bin/iperf3")
    folders: list[str] = []
    for package in LIBRARIES:
        root = debian.program(package, f"usr/share/doc/{package}/copyright").parents[4]
        folders += [str(folder) for folder in root.glob("usr/lib/*") if folder.is_dir()]
    path = directory / "iperf3"
    path.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={":".join(folders)} exec {program} "$@"\n')
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def serving(program: Path, *arguments: str) -> Iterator[int]:
    """Run a server and give its port."""
    port = ports.take()
    command = [program, "--server", "--port", str(port), "--bind", "127.0.0.1", "--forceflush", *arguments]
    with subprocess.Popen(
        command, env={**os.environ, "LC_ALL": "C"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout
            for line in process.stdout:  # a connection to see whether it listens would be a test that it serves
                if "listening" in line:
                    break
            yield port
        finally:
            stop(process)
