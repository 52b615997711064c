"""The runs that the table and the picture are made of: kept as JSON, so that lines can be measured one at a time."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.accuracy.lines import Line, parse
from bench.accuracy.outcome import Figures, Outcome

REFERENCE = "iperf3"


@dataclass
class Run:
    """One run of an engine on a line."""

    line: str
    engine: str
    measured_on: str
    """Date and machine."""
    outcome: Outcome


@dataclass
class Runs:
    """All runs, in the order in which they were made."""

    every: list[Run] = field(default_factory=list)

    def of(self, line: str, engine: str) -> list[Outcome]:
        """Return the outcomes of an engine on a line."""
        return [run.outcome for run in self.every if (run.line, run.engine) == (line, engine)]

    def lines(self) -> list[Line]:
        """Return the lines, those without loss first, then near ones, then slow ones."""
        names = {run.line for run in self.every}
        return sorted(map(parse, names), key=lambda line: (line.queue_s, line.loss, line.round_trip_s or 1, line.down_bps or 1e12))

    def engines(self) -> list[str]:
        """Return the engines, the reference first."""
        return sorted({run.engine for run in self.every}, key=lambda name: (name != REFERENCE, name))

    def truth_bps(self, line: Line, figures: Figures, direction: str) -> float | None:
        """Return the goodput that a figure is held against.

        That is what was counted in the seconds that the engine measured in; for an engine that does not tell them, what the
        reference filled the line with, and without the reference what the shaper lets through. Where packets are lost neither is
        known: more streams carry more.
        """
        if figures.counted_bps or line.loss:
            return figures.counted_bps
        return self.reference_bps(line, direction) or line.goodput_bps(direction)

    def reference_bps(self, line: Line, direction: str) -> float | None:
        """Return what was counted while the reference ran, the median of its runs."""
        counted = [outcome.figures[direction].counted_bps for outcome in self.of(line.name, REFERENCE) if direction in outcome.figures]
        known = [each for each in counted if each]
        return median(known) if known else None

    def errors(self, line: Line, engine: str, direction: str) -> list[float]:
        """Return the relative error of every run that has a figure."""
        found = []
        for outcome in self.of(line.name, engine):
            figures = outcome.figures.get(direction)
            if figures and figures.measured_bps and (truth := self.truth_bps(line, figures, direction)):
                found.append(figures.measured_bps / truth - 1)
        return found

    def replace(self, new: "Runs") -> None:
        """Take new runs, in place of those of the same engines on the same lines."""
        again = {(run.line, run.engine) for run in new.every}
        self.every = [run for run in self.every if (run.line, run.engine) not in again] + new.every


def read(path: Path) -> Runs:
    """Read the runs of a file; none where there is no file."""
    if not path.exists():
        return Runs()
    runs = []
    for each in json.loads(path.read_text()):
        outcome = each.pop("outcome")
        figures = {direction: Figures(**numbers) for direction, numbers in outcome.pop("figures").items()}
        runs.append(Run(**each, outcome=Outcome(figures=figures, **outcome)))
    return Runs(runs)


def write(path: Path, runs: Runs) -> None:
    """Write the runs, each on a line of its own."""
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(run)) for run in runs.every) + "\n]\n")
