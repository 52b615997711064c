"""Three real NATS servers that form one JetStream cluster on loopback, configured as `make cluster` does it."""

import contextlib
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from services.embedded import cluster
from services.embedded.nats import Nats
from services.embedded.program import remembered_port
from tests import ports
from tests.servers import start, stop, wait_for_port


class Member:
    """One server of the cluster, which a test may kill and start again on the same store and ports."""

    def __init__(self, data: Path, server: Nats) -> None:
        self.name, self.url = server.program.name, server.url
        self.process: subprocess.Popen[bytes] | None = None
        self.monitor = remembered_port(data, f"{self.name}-monitor")
        self._program = server.program

    def start(self) -> None:
        """Start it (again) and wait until it takes connections."""
        self.process = start(self._program)
        wait_for_port(int(self._program.port or 0))

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it, if it was started."""
        if self.process:
            stop(self.process)

    def told(self, path: str) -> Any:
        """Return what its monitoring page says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/{path}", timeout=5) as answer:
            return json.load(answer)


class Cluster:
    """Three servers; `url` names all of them, as the setting of a service does."""

    def __init__(self, directory: Path) -> None:
        names = [f"{name}{part}" for name in cluster.SERVERS for part in ("", "-route", "-monitor")]
        (directory / "ports.json").write_text(json.dumps(ports.taken(*names)))
        self.members = [Member(directory, server) for server in cluster.servers(directory)]
        self.url = ",".join(member.url for member in self.members)

    def start(self) -> None:
        """Start all."""
        for member in self.members:
            member.start()

    def wait_until_whole(self, deadline_s: float = 30) -> None:
        """Wait until every server says that it is healthy: it has a leader and has caught up with what it keeps."""
        end = time.monotonic() + deadline_s
        while True:
            with contextlib.suppress(OSError):
                if all(member.told("healthz")["status"] == "ok" for member in self.members):
                    return
            assert time.monotonic() < end, "the cluster is not whole"
            time.sleep(0.05)

    def member(self, name: str) -> Member:
        """Return the server of that name."""
        return next(member for member in self.members if member.name == name)

    def stop(self) -> None:
        """Stop all."""
        for member in self.members:
            member.stop()
