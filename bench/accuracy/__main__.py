"""Measure lines with engines, several times each, and write what came out: `make bench-accuracy`.

    python -m bench.accuracy --lines "100/20,10ms unshaped" --engines "iperf3 http" --rounds 3

Engines alternate, so that what the machine does meanwhile meets all of them alike. What was measured before on other lines
or with other engines stays in the table.
"""

import argparse
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench.accuracy import iperf3, picture, runs, table
from bench.accuracy.engines import ENGINES, USUAL
from bench.accuracy.lines import ALL, DEFAULT, Line, parse
from bench.accuracy.outcome import Outcome
from bench.accuracy.runs import Run, Runs
from bench.accuracy.testbed import NotAllowed, laid
from bench.accuracy.watch import DIRECTIONS, Overdue

DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Measure, print and write; exit with 1 when this machine lacks something, 2 when a run failed."""
    wanted = _wanted()
    if missing := _missing():
        sys.stderr.write(f"bench-accuracy cannot run here: {'; '.join(missing)}.\n")
        return 1
    kept, failed = runs.read(wanted.runs), False
    try:
        for line in wanted.lines:
            new = Runs()
            _measure(line, wanted.engines, wanted.rounds, new)
            failed |= any(run.outcome.failure for run in new.every)
            kept.replace(new)
            runs.write(wanted.runs, kept)
    except NotAllowed as error:
        sys.stderr.write(f"bench-accuracy cannot run here: {error}.\n")
        return 1
    finally:  # also when it is interrupted: what was measured until then is in the table
        if wanted.page:
            table.write(wanted.page, kept)
            picture.write(wanted.page.with_suffix(".svg"), kept)
    return 2 if failed else 0


def _wanted() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lines", default=" ".join(DEFAULT), help=f"separated by spaces; `all` are: {' '.join(ALL)}")
    parser.add_argument("--engines", default=" ".join(USUAL), help=f"of {', '.join(ENGINES)}; without it: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=DOCS / "accuracy.json", help="where the figures of all runs are kept")
    parser.add_argument("--page", type=Path, help="the page whose table and picture to write anew")
    wanted = parser.parse_args()
    try:
        wanted.lines = [parse(name) for name in (ALL if wanted.lines == "all" else wanted.lines.split())]
    except ValueError as error:
        parser.error(str(error))
    wanted.engines = wanted.engines.split()
    if unknown := {*wanted.engines} - {*ENGINES}:
        parser.error(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    return wanted


def _missing() -> list[str]:
    missing = ["it makes network namespaces, which needs root"] if os.geteuid() else []
    for program, package in {
        "ip": "iproute2",
        "tc": "iproute2",
        "unshare": "util-linux",
        "nsenter": "util-linux",
        "sysctl": "procps",
    }.items():
        if not shutil.which(program):
            missing.append(f"there is no {program} (Debian's package is {package})")
    if not Path("/dev/net/tun").exists():
        missing.append("there is no /dev/net/tun, which delay and loss need")
    try:
        iperf3.installed()
    except RuntimeError as error:
        missing.append(str(error))
    return missing


def _measure(line: Line, engines: list[str], rounds: int, into: Runs) -> None:
    """Lay a line and measure it with each engine in turn, so many times."""
    machine = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}"
    with laid(line, seed=1) as bed:
        for name in engines:
            ENGINES[name].serve(bed)
        for number in range(rounds):
            for name in engines[number % len(engines) :] + engines[: number % len(engines)]:
                try:
                    outcome = ENGINES[name].measure(bed)
                except Overdue as error:
                    outcome = Outcome(failure=str(error))
                into.every.append(Run(line.name, name, machine, outcome))
                sys.stdout.write(f"{line.name:20} {name:10} {_tell(into, line, outcome)}\n")
                sys.stdout.flush()


def _tell(measured: Runs, line: Line, outcome: Outcome) -> str:
    if outcome.failure:
        return outcome.failure
    parts = []
    for way in DIRECTIONS:
        figures = outcome.figures[way]
        truth = measured.truth_bps(line, figures, way)
        if figures.measured_bps and truth:
            parts.append(
                f"{way} {figures.measured_bps / 1e6:.2f} of {truth / 1e6:.2f} Mbit/s, {table.percent(figures.measured_bps / truth - 1)}"
            )
    parts += [f"{outcome.cpu_s:.1f} s of CPU", f"{outcome.wire_bytes / 1e6:.0f} MB", f"{outcome.wall_s:.1f} s"]
    return "; ".join(parts + ([outcome.limit] if outcome.limit else []))


if __name__ == "__main__":
    sys.exit(main())
