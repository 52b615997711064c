"""The reference: iperf3, four streams, one direction after the other."""

import json
import os
import shutil
import sysconfig
from functools import cache

from bench.accuracy.outcome import Figures, Outcome
from bench.accuracy.testbed import SERVER, Bed
from bench.accuracy.watch import DIRECTIONS, watch
from tests.debian import CACHE, program

PORT = 5201
STREAMS, WARM_UP_S, SECONDS = 4, 2, 5


@cache
def installed() -> tuple[str, dict[str, str]]:
    """Return the program and its environment: the machine's own, else Debian's, unpacked beside the virtual environment.

    Raises: RuntimeError that says what to install.
    """
    if found := shutil.which("iperf3"):
        return found, {}
    libraries = f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    for package, name in (("libiperf0", "libiperf.so.0"), ("libsctp1", "libsctp.so.1")):
        program(package, f"{libraries}/{name}")
    path = os.pathsep.join(str(CACHE / package / libraries) for package in ("libiperf0", "libsctp1"))
    return str(program("iperf3", "usr/bin/iperf3")), {"LD_LIBRARY_PATH": path}


def serve(bed: Bed) -> None:
    """Start the server and wait until it listens."""
    path, environment = installed()
    bed.serve(PORT, path, "--server", environment=environment)


def measure(bed: Bed) -> Outcome:
    """Measure download, then upload; the first seconds are left out, as iperf3 does it (`--omit`)."""
    path, environment = installed()
    outcome = Outcome()
    for direction in DIRECTIONS:
        command = [path, "--client", SERVER, "--parallel", str(STREAMS), "--omit", str(WARM_UP_S), "--time", str(SECONDS), "--json"]
        command += ["--reverse"] if direction == "down" else []
        with (bed.directory / "iperf3.json").open("w+") as answer:
            process = bed.start("client", *command, env={**os.environ, **environment}, stdout=answer)
            watched = watch(bed, process, deadline_s=WARM_UP_S + SECONDS + 30)
            answer.seek(0)
            said = json.load(answer)
        outcome.cost(watched)
        if "error" in said:
            outcome.failure = said["error"]
            return outcome
        window = watched.last_seconds(direction, SECONDS)
        outcome.figures[direction] = Figures(
            measured_bps=said["end"]["sum_received"]["bits_per_second"],
            counted_bps=watched.goodput_bps(direction, *window),
            queue_s=watched.queue_s(direction, *window),
            streams=STREAMS,
        )
    return outcome
