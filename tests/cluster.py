"""Three real NATS servers that form one JetStream cluster on loopback."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from services.embedded import nats
from services.embedded.program import Program
from tests.servers import start, stop, wait_for_port


class Member:
    """One server of the cluster, which a test may kill and start again on the same store and ports."""

    def __init__(self, name: str, directory: Path, ports: list[int]) -> None:
        self.name = name
        self.port, self.route, self.monitor = ports
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"nats://127.0.0.1:{self.port}"
        self._directory = directory / name
        self._directory.mkdir()
        self._program = Program(
            name, (nats.binary(), "--config", str(self._directory / "nats.conf")), log=directory / "logs" / f"{name}.log"
        )

    def configure(self, routes: list[int]) -> None:
        """Write its configuration: what is acknowledged is on its disk, as in earnest."""
        (self._directory / "nats.conf").write_text(
            f'listen: "127.0.0.1:{self.port}"\nhttp: "127.0.0.1:{self.monitor}"\nserver_name: "{self.name}"\n'
            f"jetstream {{ store_dir: {json.dumps(str(self._directory / 'store'))}, sync_interval: always }}\n"
            f'cluster {{ name: "test", listen: "127.0.0.1:{self.route}", no_advertise: true, '
            f"routes: {json.dumps([f'nats-route://127.0.0.1:{port}' for port in routes])} }}\n"
        )

    def start(self) -> None:
        """Start it (again) and wait until it takes connections."""
        self.process = start(self._program)
        wait_for_port(self.port)

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
        ports = _free_ports(9)
        self.members = [Member(f"n{number}", directory, ports[3 * number : 3 * number + 3]) for number in range(3)]
        self.url = ",".join(member.url for member in self.members)
        for member in self.members:
            member.configure([each.route for each in self.members])

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


def _free_ports(count: int) -> list[int]:
    """Return ports that are free and all different: asked for one after the other, one may come twice."""
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]
