"""What the embedded system costs while nothing is due, part by part, and how soon it is there: `make bench-footprint`.

CPU is what a part used over a minute, as a share of one core; memory is its proportional set size (PSS), which counts every
shared page once; a wake-up is a thread that had waited for something and went on. The first start finds an empty directory
and makes its database; the warm ones find what the last one left.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from bench.machine import describe, system
from bench.page import table, write
from bench.pipeline.usage import cpu_s, memory_bytes
from tests.integration.test_up import REFRESHER, Up
from tests.servers import stop

SETTLE_S, MEASURE_S = 20, 60
STARTS, HELPS = 5, 11
CPU_BAR, MEMORY_BAR_MB, WARM_BAR_S, HELP_BAR_S = 0.02, 250.0, 3.0, 0.3
HEADINGS = ("part", "PSS (MB)", "CPU of a core", "wake-ups/s")
_NAMES = {"services.": "", "nats-server": "NATS", "bin/postgres": "PostgreSQL"}


@dataclass(frozen=True)
class Part:
    """What a part used while nothing was due: bytes, a share of one core, and wake-ups a second."""

    memory_bytes: int
    cpu: float
    wakes: float


@dataclass(frozen=True)
class Starts:
    """How long it took, in seconds: to the word that it runs, and `refresher --help` as a whole."""

    cold: float
    warm: Sequence[float]
    help: Sequence[float]


def parts(up: Up) -> dict[str, list[psutil.Process]]:
    """Return the children of the supervisor, each by what it is."""
    found = {}
    for child in psutil.Process(up.process.pid).children():
        words = " ".join(child.cmdline())
        name = next(told or words.partition(key)[2].split()[0] for key, told in _NAMES.items() if key in words)
        found[name] = [child]
    return found


def wakes(processes: Sequence[psutil.Process]) -> int:
    """Return how often any thread of these and of what is below them has gone on after waiting."""
    total = 0
    for process in (each for root in processes for each in (root, *root.children(recursive=True))):
        for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
            with contextlib.suppress(OSError):
                total += int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


def idle(up: Up) -> dict[str, Part]:
    """Watch every part for a minute; the supervisor last."""
    time.sleep(SETTLE_S)
    found, supervisor = parts(up), psutil.Process(up.process.pid)

    def own() -> tuple[float, int]:
        return sum(supervisor.cpu_times()[:2]), int(supervisor.num_ctx_switches().voluntary)

    before, woken, alone = cpu_s(found), {name: wakes(each) for name, each in found.items()}, own()
    time.sleep(MEASURE_S)
    after, cpu, switches = cpu_s(found), *own()
    measured = {
        name: Part(memory_bytes({name: each}), (after[name] - before[name]) / MEASURE_S, (wakes(each) - woken[name]) / MEASURE_S)
        for name, each in found.items()
    }
    memory = supervisor.memory_full_info().pss
    measured["supervisor"] = Part(memory, (cpu - alone[0]) / MEASURE_S, (switches - alone[1]) / MEASURE_S)
    return measured


def warm_start_s(up: Up) -> float:
    """Stop a system, start it again, and return how long that took."""
    stop(up.process)
    up.start()
    return up.took_s


def help_s() -> float:
    """Return how long `refresher --help` takes."""
    started = time.perf_counter()
    subprocess.run([REFRESHER, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def report(measured: Mapping[str, Part], starts: Starts) -> list[str]:
    """Return the table, and a line for each bar."""
    memory, cpu, woken = (sum(getattr(each, name) for each in measured.values()) for name in ("memory_bytes", "cpu", "wakes"))
    rows = [(name, each.memory_bytes, each.cpu, each.wakes) for name, each in measured.items()]
    told = [(name, f"{pss / 2**20:.1f}", f"{share:.2%}", f"{number:.1f}") for name, pss, share, number in rows]
    told.append(("**the whole**", f"**{memory / 2**20:.0f}**", f"**{cpu:.2%}**", f"**{woken:.0f}**"))
    warm, helped = median(starts.warm), median(starts.help)
    return [
        *table(HEADINGS, told),
        "",
        f"- idle: {_judged(memory / 2**20, MEMORY_BAR_MB, '{:.0f} MB')}, {_judged(cpu * 100, CPU_BAR * 100, '{:.2f} % of one core')}",
        f"- first start, with an empty directory: {starts.cold:.1f} s",
        f"- warm start: {_judged(warm, WARM_BAR_S, '{:.2f} s')}, {_range(starts.warm)}",
        f"- `refresher --help`: {_judged(helped, HELP_BAR_S, '{:.2f} s')}, {_range(starts.help)}",
    ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} in {len(values)}"


def _judged(value: float, bar: float, form: str) -> str:
    return f"{form.format(value)} (bar {bar:g}{'' if value <= bar else ': **missed**'})"


def main() -> None:
    """Measure, print, and write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    helped = [help_s() for _ in range(HELPS)]
    with system() as up:
        cold = up.took_s
        warm = [warm_start_s(up) for _ in range(STARTS)]
        measured = idle(up)
    lines = [f"Measured on {describe()}.", "", *report(measured, Starts(cold, warm, helped))]
    print("\n".join(lines))
    if asked.page:
        write(asked.page, "footprint", lines)


if __name__ == "__main__":
    sys.exit(main())
