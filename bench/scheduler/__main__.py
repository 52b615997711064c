"""Measure both sides, one number of schedules after another, and write the tables: `make bench-scheduler`.

First everything is overdue: how long until the first fires, and how many a second follow. Then each schedule is due once a
minute, spread over it: how late it fires. A fire counts when it is in the stream, or where a worker could take it from Redis.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.machine import describe, versions
from bench.page import table, write
from bench.scheduler import beat, ours
from bench.scheduler.fires import Measured
from bench.scheduler.report import HEADINGS, rows, verdicts


def measure(directory: Path, count: int, seconds: int, burst_s: int, sides: str) -> list[Measured]:
    """Measure the sides that are asked for, Refresher first."""
    for side in sides.split(","):
        (directory / side).mkdir(mode=0o711)
    measured = [asyncio.run(ours.measure(directory / "ours", count, seconds))] if "ours" in sides else []
    if "beat" in sides:
        measured.append(beat.measure(directory / "beat", count, seconds, burst_s))
    return measured


def main() -> None:
    """Measure, print, and write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of schedules")
    parser.add_argument("--seconds", type=int, default=60, help="that each side is watched")
    parser.add_argument("--burst-seconds", type=int, default=30, help="that beat is given for a burst")
    parser.add_argument("--sides", default="ours,beat")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    for count in asked.sizes:
        with tempfile.TemporaryDirectory(prefix="refresher-bench-", ignore_cleanup_errors=True) as name:
            Path(name).chmod(0o711)
            measured = measure(Path(name), count, asked.seconds, asked.burst_seconds, asked.sides)
        peers = versions("celery", "django-celery-beat")
        lines = [f"{count:,} schedules, {asked.seconds} s, on {describe()}; {peers}.", "", *table(HEADINGS, rows(measured)), ""]
        lines += verdicts(count, measured) if "ours" in asked.sides else []
        print("\n".join(lines), flush=True)
        if asked.page:
            write(asked.page, f"scheduler SIZES={count}", lines)


if __name__ == "__main__":
    sys.exit(main())
