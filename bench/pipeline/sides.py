"""The sides of the comparison, each whole: a publisher, a broker, workers. All store into the same PostgreSQL."""

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.machine import PEERS
from bench.pipeline.redis import Redis
from services.embedded import nats
from tests import ports
from tests.servers import port_of, start, stop, wait_for_port
from tests.services import ServiceProcess

WORKERS = 2
"""Processes that work, a side: of Celery's pool, of Dramatiq, and runners, each on a line of its own."""
SITES = [f"site-{number}" for number in range(1, WORKERS + 1)]


@dataclass(frozen=True)
class Side:
    """One of what is compared, running."""

    name: str
    publisher: "subprocess.Popen[str]"
    parts: dict[str, list[psutil.Process]]

    def publish(self, number: int, rate: float, name: str) -> None:
        """Begin to publish so many tasks; `published` waits for the end of it."""
        assert self.publisher.stdin
        self.publisher.stdin.write(f"{number} {rate} {name}\n")
        self.publisher.stdin.flush()

    def published(self) -> None:
        """Wait until the publisher has said that it is done."""
        assert self.publisher.stdout
        told = self.publisher.stdout.readline()
        assert told == "done\n", f"the publisher of {self.name} ended: {told!r}"


def refresher(name: str, directory: Path, database_url: str, stack: ExitStack, *, sync_always: bool) -> Side:
    """Start NATS, scheduler, runners and recorder."""
    directory.mkdir(mode=0o711)
    (directory / "ports.json").write_text(f'{{"nats": {ports.take()}}}')
    server = nats.prepare(directory)
    if not sync_always:
        configuration = directory / "nats.conf"
        configuration.write_text(configuration.read_text().replace(", sync_interval: always", ""))
    broker = start(server.program)
    stack.callback(stop, broker)
    wait_for_port(port_of(server.url))
    quiet = {"REFRESHER_LOG_LEVEL": "warning"}
    services = [ServiceProcess("scheduler", directory, server.url, **quiet).wait_until_ready(60)]
    services.append(ServiceProcess("recorder", directory, server.url, database_url, **quiet).wait_until_ready(60))
    services += [ServiceProcess("runner", directory, server.url, REFRESHER_SITE=site, **quiet) for site in SITES]
    for service in services:
        stack.callback(service.stop)
        service.wait_until_ready(60)
    publisher = _publisher([sys.executable, "-m", "bench.pipeline.publish", *SITES], {"REFRESHER_NATS_URL": server.url}, stack)
    scheduler, recorder, *runners = (psutil.Process(service.process.pid) for service in services)
    parts = {
        "publisher": [psutil.Process(publisher.pid)],
        "workers": [scheduler, recorder, *runners],
        "broker": [psutil.Process(broker.pid)],
    }
    return Side(name, publisher, parts)


def celery(name: str, redis: Redis, database_url: str, directory: Path, stack: ExitStack, *, acks_late: bool) -> Side:
    """Start Celery's worker with a pool of processes."""
    options = ["--pool", "prefork", "--concurrency", str(WORKERS), "--without-gossip", "--without-mingle", "--without-heartbeat"]
    command = [str(PEERS / "celery"), "-A", "bench.pipeline.peers.with_celery", "worker", "--loglevel", "WARNING", *options]
    return _peer(name, "with_celery", command, redis, database_url, directory, stack, BENCH_ACKS_LATE=str(int(acks_late)))


def dramatiq(name: str, redis: Redis, database_url: str, directory: Path, stack: ExitStack) -> Side:
    """Start Dramatiq's worker processes, of four threads each."""
    command = [str(PEERS / "dramatiq"), "bench.pipeline.peers.with_dramatiq", "--processes", str(WORKERS), "--threads", "4"]
    return _peer(name, "with_dramatiq", command, redis, database_url, directory, stack)


def _peer(
    name: str, module: str, command: list[str], redis: Redis, database_url: str, directory: Path, stack: ExitStack, **more: str
) -> Side:
    stack.callback(stop, redis.process)
    environment = {"BENCH_REDIS_URL": redis.url, "BENCH_DATABASE_URL": database_url, "PYTHONPATH": str(Path.cwd()), **more}
    with (directory / f"{name}.log").open("w") as log:
        worker = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)
    stack.callback(stop, worker)
    publisher = _publisher([str(PEERS / "python"), "-m", "bench.pipeline.peers.publish", module], environment, stack)
    parts = {"publisher": [psutil.Process(publisher.pid)], "workers": [psutil.Process(worker.pid)], "broker": redis.parts}
    return Side(name, publisher, parts)


def _publisher(command: list[str], environment: dict[str, str], stack: ExitStack) -> "subprocess.Popen[str]":
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(stop, process)
    assert process.stdout
    told = process.stdout.readline()
    assert told == "ready\n", f"{' '.join(command)} did not start"
    return process
