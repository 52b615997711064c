"""celery beat with django-celery-beat's database scheduler, its broker a Redis in memory, its database a PostgreSQL."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.machine import PEERS
from bench.pipeline.redis import Redis
from bench.scheduler.fires import Burst, Fire, Measured, Minute, within
from tests.servers import Postgres, stop

_BEAT = ("celery", "-A", "bench.scheduler.peers.with_beat", "beat", "--scheduler", "django_celery_beat.schedulers:DatabaseScheduler")
A_MINUTE_S = 60.0
STARTS_WITHIN_S = 90.0
"""How long its first fire is waited for: it reads and compares all schedules before."""


class _Servers:
    def __init__(self, directory: Path) -> None:
        self.postgres = Postgres(directory, {})
        self.redis = Redis(directory / "redis", on_disk=False)
        self.log = directory / "beat.log"
        self._environment = {
            **os.environ,
            "BENCH_REDIS_URL": self.redis.url,
            "BENCH_DATABASE_URL": self.postgres.url,
            "DJANGO_SETTINGS_MODULE": "bench.scheduler.peers.settings",
            "PYTHONPATH": str(Path.cwd()),
        }

    def run(self, *command: str) -> None:
        """Run a program of the peers' environment to its end."""
        subprocess.run([str(PEERS / command[0]), *command[1:]], env=self._environment, check=True)

    @contextmanager
    def running(self, *command: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run one until the block ends; its output goes to a file."""
        with output.open("wb") as file:
            process = subprocess.Popen(
                [str(PEERS / command[0]), *command[1:]], env=self._environment, stdout=file, stderr=None if "fires" in output.name else file
            )
        try:
            yield process
        finally:
            stop(process)

    def stop(self) -> None:
        """Stop both."""
        stop(self.redis.process)
        self.postgres.stop()


def _read(path: Path) -> list[Fire]:
    lines = path.read_text().splitlines(keepends=True)
    parts = (line.split() for line in lines if line.endswith("\n"))
    return [Fire(name, float(due_at), float(at)) for name, due_at, at in parts]


def _fill(servers: _Servers, count: int, first_due_at: float, over_s: float) -> float:
    """Store schedules, and return how long that took."""
    began = time.time()
    servers.run("python", "-m", "bench.scheduler.peers.fill", str(count), str(first_due_at), str(over_s))
    return time.time() - began


def _burst(servers: _Servers, directory: Path, count: int, seconds: int) -> tuple[float, Burst]:
    """Start beat with everything stored overdue, and return how soon the first fired and how the others followed, from that one on."""
    output = directory / "burst-fires"
    with servers.running("python", "-m", "bench.scheduler.peers.listen", output=output):
        started_at = time.time()
        with servers.running(*_BEAT, output=servers.log):
            while not _read(output):
                if time.time() - started_at > STARTS_WITHIN_S:
                    raise TimeoutError(f"beat has fired nothing {STARTS_WITHIN_S:.0f} s after its start: {servers.log.read_text()}")
                time.sleep(0.2)
            end = time.time() + seconds
            while time.time() < end and len(_read(output)) < count:
                time.sleep(0.5)
    times = [fire.at for fire in within(_read(output), 0, started_at)]
    return times[0] - started_at, Burst(len(times) - 1, times[-1] - times[0])


def _minute(servers: _Servers, directory: Path, count: int, seconds: int, starts_s: float) -> Minute:
    """Have each schedule become due once, one after another, from so long after now on: by then they are stored and beat has started."""
    since = time.time() + starts_s
    _fill(servers, count, since, A_MINUTE_S)
    output = directory / "minute-fires"
    with (
        servers.running("python", "-m", "bench.scheduler.peers.listen", output=output),
        servers.running(*_BEAT, output=servers.log) as beat,
    ):
        process = psutil.Process(beat.pid)
        time.sleep(max(0.0, since - time.time()))
        before = sum(process.cpu_times()[:2])
        time.sleep(seconds)
        cpu = (sum(process.cpu_times()[:2]) - before) / seconds
        memory = process.memory_full_info().pss
        time.sleep(2)
    return Minute(int(count * min(seconds / A_MINUTE_S, 1)), within(_read(output), since, since + seconds), cpu, memory)


def measure(directory: Path, count: int, seconds: int, burst_s: int) -> Measured:
    """Measure a burst, then a minute, each with a beat of its own."""
    servers = _Servers(directory)
    try:
        servers.run("python", "-m", "django", "migrate", "--verbosity", "0")
        to_fill_s = _fill(servers, count, time.time() - 3_600, 60)
        first_after_s, burst = _burst(servers, directory, count, burst_s)
        minute = _minute(servers, directory, count, seconds, 1.4 * to_fill_s + 1.4 * first_after_s + 4)
    finally:
        servers.stop()
    return Measured("celery beat", first_after_s, burst, minute)
