"""Real servers for the tests: started as child processes, stopped by pid."""

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from services.embedded import nats, postgres
from services.embedded.program import Program
from tests import ports


def start(program: Program) -> "subprocess.Popen[bytes]":
    """Start a program; its output goes to its log."""
    assert program.log
    program.log.parent.mkdir(exist_ok=True)
    with program.log.open("ab") as log:
        return subprocess.Popen(
            program.command,
            env={**os.environ, **program.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            user=program.user,
            group=pwd.getpwnam(program.user).pw_gid if program.user else None,
            extra_groups=[] if program.user else None,
            cwd="/",
        )


def stop(process: "subprocess.Popen[bytes]", sign: int = signal.SIGTERM) -> None:
    """Stop a process that a test started and wait until it is gone."""
    if process.poll() is None:
        process.send_signal(sign)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_port(port: int, deadline_s: float = 20) -> None:
    """Wait until something listens on a loopback port."""
    end = time.monotonic() + deadline_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < end, f"nothing listens on port {port}"
        time.sleep(0.02)


def port_of(url: str) -> int:
    """Return the port in a URL."""
    return int(url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])


class Nats:
    """A NATS server with JetStream that a test may kill and start again on the same store and port."""

    def __init__(self, data: Path) -> None:
        (data / "ports.json").write_text(json.dumps(ports.taken("nats")))
        self._server = nats.prepare(data)
        self.url = self._server.url
        self.configuration = data / "nats.conf"
        self.process = start(self._server.program)
        wait_for_port(port_of(self.url))

    def kill(self) -> None:
        """End the server as a power cut would."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it again."""
        self.process = start(self._server.program)
        wait_for_port(port_of(self.url))

    def stop(self) -> None:
        """Stop it."""
        stop(self.process)


_FORGETFUL = {"fsync": "off", "max_connections": "60"}


class Postgres:
    """A PostgreSQL server that a test may stop and start again; unless told otherwise it does not wait for the disk."""

    def __init__(self, data: Path, settings: dict[str, str] = _FORGETFUL) -> None:
        (data / "ports.json").write_text(json.dumps(ports.taken("postgres")))
        self._server = postgres.prepare(data, settings)
        self.url = self._server.url
        self._state = data / "postgres" / "postmaster.pid"
        self.binaries = Path(self._server.program.command[0]).parent
        self.start()

    def start(self) -> None:
        """Start it (again) and wait until it takes connections."""
        self.process = start(self._server.program)
        wait_for_port(port_of(self.url))
        end = time.monotonic() + 20
        while "ready" not in self._state.read_text():  # it listens a while before it is, and refuses until then
            assert time.monotonic() < end, "PostgreSQL does not become ready"
            time.sleep(0.02)

    def kill(self) -> None:
        """End the server and every process of its sessions as a power cut would."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(processes, 5)  # the next one does not start while any of them has its memory

    def stop(self) -> None:
        """Stop it, ending its sessions."""
        stop(self.process, signal.SIGINT)

    def database(self, name: str) -> str:
        """Return the URL of another database on this server."""
        return self.url.replace("/postgres?", f"/{name}?")


@contextlib.contextmanager
def running(server: Nats | Postgres) -> Iterator[Nats | Postgres]:
    """Stop a server at the end, whatever happens."""
    try:
        yield server
    finally:
        server.stop()
