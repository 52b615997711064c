"""The engines to hold against the truth: which server each one needs, and how it is run."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

from bench.accuracy import iperf3, librespeed
from bench.accuracy.outcome import Figures, Outcome
from bench.accuracy.testbed import SERVER, Bed
from bench.accuracy.watch import Watched, watch

REFRESHER = str(Path(sys.executable).parent / "refresher")
STANDIN_PORT, TESTSERVER_PORT, PHP_PORT, CLI_PORT = 8080, 8477, 8079, 8487
DEADLINE_S = 120
FAST_BYTES = 200_000_000_000
SIDES = {"down": "download", "up": "upload"}


@dataclass(frozen=True)
class Engine:
    """An engine: `serve` starts its server and waits for it, `measure` runs it once."""

    serve: Callable[[Bed], None]
    measure: Callable[[Bed], Outcome]


def _probe(bed: Bed, name: str, options: dict[str, str], **environment: str) -> Outcome:
    """Run an engine as a person would: `refresher probe`."""
    arguments = [argument for key, value in options.items() for argument in ("--option", f"{key}={value}")]
    said, complaint = bed.directory / "said", bed.directory / "complaint"
    with said.open("w") as stdout, complaint.open("w") as stderr:
        command = [REFRESHER, "probe", name, *arguments, "--json"]
        process = bed.start("client", *command, env={**os.environ, **environment}, stdout=stdout, stderr=stderr)
        watched = watch(bed, process, DEADLINE_S)
    outcome = Outcome()
    outcome.cost(watched)
    if watched.exit_code:
        outcome.failure = complaint.read_text().strip()
    else:
        _read(json.loads(said.read_text()), watched, outcome)
    return outcome


def _read(measurement: dict[str, Any], watched: Watched, outcome: Outcome) -> None:
    """Take what a Measurement says, and count what arrived in the seconds that it names as its own."""
    outcome.latency_s, outcome.loss, outcome.limit = measurement["latency_s"], measurement["packet_loss"], measurement.get("limited_by")
    for direction, side in SIDES.items():
        figures = outcome.figures[direction] = Figures(measured_bps=measurement[f"{side}_bps"])
        figures.loaded_latency_s = measurement.get(f"{side}_latency_s")
        details = measurement["details"].get(side)
        if isinstance(details, dict):
            figures.streams = details.get("streams")
            figures.cpu_share = details.get("cpu_share")
        if isinstance(details, dict) and {"began_at", "ended_at"} <= {*details}:
            window = [details[name] - time() + monotonic() for name in ("began_at", "ended_at")]
            figures.counted_bps = watched.goodput_bps(direction, *window)
            figures.queue_s = watched.queue_s(direction, *window)


def _serve_speedtest(bed: Bed) -> None:
    arguments = ("--address", SERVER, "--port", str(STANDIN_PORT), "--seconds", "10", "--fast")
    bed.serve(STANDIN_PORT, sys.executable, "-m", "tests.standin", *arguments)


def _measure_speedtest(bed: Bed) -> Outcome:
    proxy = f"http://{SERVER}:{STANDIN_PORT}"
    return _probe(bed, "speedtest", {"https": "false"}, http_proxy=proxy, https_proxy=proxy, no_proxy=SERVER)


def _serve_http(bed: Bed, port: int = TESTSERVER_PORT, *more: str) -> None:
    bed.serve(port, REFRESHER, "testserver", "--host", SERVER, "--port", str(port), "--max-bytes", str(FAST_BYTES), *more)


def _measure_http(bed: Bed, port: int = TESTSERVER_PORT) -> Outcome:
    options = {"server": f"http://{SERVER}:{port}"}
    if not bed.line.down_bps:  # where the processors are the limit, the number of streams is part of the rate; and bytes go fast
        options |= {"streams": str(iperf3.STREAMS), "max_bytes": str(FAST_BYTES)}
    return _probe(bed, "http", options)


ENGINES = {
    "iperf3": Engine(iperf3.serve, iperf3.measure),
    "http": Engine(_serve_http, _measure_http),
    "speedtest": Engine(_serve_speedtest, _measure_speedtest),
    "http-php": Engine(lambda bed: librespeed.serve_php(bed, PHP_PORT), lambda bed: _measure_http(bed, PHP_PORT)),
    "librespeed-cli": Engine(lambda bed: _serve_http(bed, CLI_PORT, "--no-udp"), lambda bed: librespeed.measure(bed, CLI_PORT)),
}
USUAL = ("iperf3", "http", "speedtest")
"""The others are measured where they are asked for."""
