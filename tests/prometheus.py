"""A real Prometheus, and what the exporters would tell it."""

import contextlib
import math
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import yaml

from services.embedded.program import Program
from tests import ports
from tests.debian import program
from tests.http import plain_client
from tests.servers import port_of, start, stop, wait_for_port

DATA = Path(__file__).parent / "data" / "exporters"

Jobs = dict[str, tuple[str, str]]
"""The address and the path of what each job scrapes."""


class Prometheus:
    """A Prometheus that scrapes every second."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def series(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of the series that had a number within the last seconds: those that a graph draws."""
        end = datetime.now(UTC).timestamp()
        asked = {"query": expression, "start": end - 5, "end": end, "step": 1}
        async with plain_client(self.url) as client:
            answer = await client.get("/api/v1/query_range", params=asked)
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found = answer.json()["data"]["result"]
        return [each["metric"] for each in found if any(math.isfinite(float(value)) for _, value in each["values"])]


@contextlib.contextmanager
def prometheus(directory: Path, jobs: Jobs) -> Iterator[Prometheus]:
    """Run a Prometheus until the end of the block."""
    scrapes = [
        {"job_name": job, "metrics_path": path, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
        for job, (url, path) in jobs.items()
    ]
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": scrapes}))
    address = f"127.0.0.1:{ports.take()}"
    command = (
        str(program("prometheus", "usr/bin/prometheus")),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}/prometheus",
        f"--web.listen-address={address}",
    )
    process = start(Program("prometheus", command, {}, log=directory / "logs" / "prometheus.log"))
    try:
        wait_for_port(port_of(address))
        yield Prometheus(f"http://{address}")
    finally:
        stop(process)


@contextlib.contextmanager
def exporters() -> Iterator[Jobs]:
    """Serve what the exporters say until the end of the block, and give the jobs that read it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Exporters) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {path.stem: (f"127.0.0.1:{server.server_address[1]}", f"/{path.name}") for path in DATA.glob("*.txt")}
        finally:
            server.shutdown()
            thread.join()


class _Exporters(BaseHTTPRequestHandler):
    scrapes = count(1)

    def do_GET(self) -> None:
        factor = 1 + next(self.scrapes) / 1000
        lines = (DATA / self.path.strip("/")).read_text().splitlines(keepends=True)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write("".join(_later(line, factor) for line in lines).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _later(line: str, factor: float) -> str:
    """Return a line of the exposition as it is a while later: what counts up has counted up."""
    if not re.match(r"\w+_total\b|pg_stat_database_(?!numbackends)\w+|gnatsd_varz_(in|out)_(msgs|bytes)", line):
        return line
    sample, value = line.rsplit(" ", 1)
    return f"{sample} {float(value) * factor}\n"
