"""Redis from Debian's archive: the peers' broker."""

import os
import subprocess
import sysconfig
from pathlib import Path

import psutil

from tests import ports
from tests.debian import program
from tests.servers import wait_for_port

_LIBRARIES = {"libjemalloc2": "libjemalloc.so.2", "liblzf1": "liblzf.so.1"}


class Redis:
    """A Redis in memory, or with its log written to disk before a command is answered (`appendfsync always`)."""

    def __init__(self, directory: Path, *, on_disk: bool) -> None:
        directory.mkdir()
        port = ports.take()
        # the server and its checker are one program, which goes by the name that it is called
        binary = program("redis-tools", "usr/bin/redis-check-rdb")
        machine = sysconfig.get_config_var("MULTIARCH")
        libraries = [program(package, f"usr/lib/{machine}/{name}") for package, name in _LIBRARIES.items()]
        logged = ("--appendonly", "yes", "--appendfsync", "always") if on_disk else ("--appendonly", "no")
        self.process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", "", *logged],
            executable=binary,
            env={**os.environ, "LD_LIBRARY_PATH": ":".join(str(each.parent) for each in libraries)},
            stdout=subprocess.DEVNULL,
        )
        wait_for_port(port)
        self.url = f"redis://127.0.0.1:{port}/0"
        self.version = (
            subprocess.run(
                ["redis-server", "--version"],
                executable=binary,
                env={**os.environ, "LD_LIBRARY_PATH": ":".join(str(each.parent) for each in libraries)},
                capture_output=True,
                text=True,
                check=True,
            )
            .stdout.split()[2]
            .removeprefix("v=")
        )

    @property
    def parts(self) -> list[psutil.Process]:
        """Its processes."""
        return [psutil.Process(self.process.pid)]
