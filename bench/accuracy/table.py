"""The table of docs/accuracy.md, between its markers."""

import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench.accuracy.lines import Line
from bench.accuracy.outcome import Outcome
from bench.accuracy.runs import Runs
from bench.accuracy.watch import DIRECTIONS

BEGIN, END = "<!-- table: written by make bench-accuracy -->", "<!-- end of table -->"
HEADINGS = (
    "line",
    "engine",
    "runs",
    "true goodput, down / up (Mbit/s)",
    "of the line",
    "error of the download",
    "error of the upload",
    "CPU (s)",
    "CPU s per GB, down / up",
    "data (MB)",
    "time (s)",
    "idle latency (ms)",
    "under load, down / up (ms)",
    "in the queue",
    "remarks",
)


def rows(runs: Runs) -> list[tuple[str, ...]]:
    """Return the lines of the table."""
    return [row(runs, line, engine) for line in runs.lines() for engine in runs.engines() if runs.of(line.name, engine)]


def row(runs: Runs, line: Line, engine: str) -> tuple[str, ...]:
    """Return what an engine did on a line: medians, and from the lowest to the highest error."""
    outcomes = runs.of(line.name, engine)
    whole = [outcome for outcome in outcomes if not outcome.failure]
    truth = {way: _middle(runs.truth_bps(line, each.figures[way], way) for each in whole if way in each.figures) for way in DIRECTIONS}
    counted = {way: _middle(each.figures[way].counted_bps for each in whole if way in each.figures) for way in DIRECTIONS}
    full = {way: line.goodput_bps(way) or runs.reference_bps(line, way) for way in DIRECTIONS}
    return (
        line.name.replace(",", ", "),
        f"`{engine}`",
        str(len(outcomes)),
        _both(_rate(truth[way]) for way in DIRECTIONS),
        _both(_share(counted[way], full[way]) for way in DIRECTIONS),
        _spread(runs.errors(line, engine, "down")),
        _spread(runs.errors(line, engine, "up")),
        _number(_middle(each.cpu_s for each in whole), "{:.1f}"),
        _both(_told(whole, way, "cpu_s_per_gb", "{:.2f}") for way in DIRECTIONS),
        _number(_middle(each.wire_bytes / 1e6 for each in whole), "{:,.0f}"),
        _number(_middle(each.wall_s for each in whole), "{:.0f}"),
        _number(_middle(each.latency_s and each.latency_s * 1e3 for each in whole), "{:.1f}"),
        _both(_milliseconds(whole, way, "loaded_latency_s", 0) for way in DIRECTIONS),
        _both(_milliseconds(whole, way, "queue_s", line.round_trip_s) for way in DIRECTIONS),
        _remarks(outcomes),
    )


def write(page: Path, runs: Runs) -> None:
    """Put the table between the markers of a page."""
    lines = ["| " + " | ".join(each) + " |" for each in (HEADINGS, ("---",) * len(HEADINGS), *rows(runs))]
    machines = "; ".join(dict.fromkeys(run.measured_on for run in runs.every))
    text = "\n".join((BEGIN, "", f"Measured on {machines}.", "", *lines, "", END))
    page.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: text, page.read_text(), flags=re.DOTALL))


def percent(share: float) -> str:
    """Return a relative error with its sign, `0.0 %` without one."""
    text = f"{share * 100:+.1f}".replace("-", "−")
    return f"{text.lstrip('+−')} %" if text in {"+0.0", "−0.0"} else f"{text} %"


def _spread(errors: list[float]) -> str:
    if not errors:
        return "–"
    middle = percent(median(errors))
    return middle if len(errors) == 1 else f"**{middle}** ({percent(min(errors))} to {percent(max(errors))})"


def _milliseconds(outcomes: list[Outcome], direction: str, name: str, plus_s: float) -> str | None:
    seconds = _middle(getattr(each.figures.get(direction), name, None) for each in outcomes)
    return None if seconds is None else f"{(seconds + plus_s) * 1e3:.0f}"


def _remarks(outcomes: list[Outcome]) -> str:
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    remarks = [f"{len(failures)} failed: {failures[0].splitlines()[-1]}"] if failures else []
    if (loss := _middle(each.loss for each in outcomes)) is not None:
        remarks.append(f"loss {loss * 100:.2f} %")
    streams = _both(_told(outcomes, way, "streams", "{:.0f}") for way in DIRECTIONS)
    if streams != "–":
        remarks.append(f"streams {streams}")
    limits = sorted({f"limited by {each.limit}" for each in outcomes if each.limit})
    return "; ".join(remarks + limits).replace("|", "/")


def _told(outcomes: list[Outcome], direction: str, name: str, form: str) -> str | None:
    value = _middle(getattr(each.figures[direction], name) for each in outcomes if direction in each.figures)
    return None if value is None else form.format(value)


def _middle(values: Iterable[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return median(known) if known else None


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _both(values: Iterable[str | None]) -> str:
    texts = [value or "–" for value in values]
    return "–" if set(texts) == {"–"} else " / ".join(texts)


def _rate(bps: float | None) -> str | None:
    if bps is None:
        return None
    digits = 2 if bps < 10e6 else 1 if bps < 1e9 else 0
    return f"{bps / 1e6:,.{digits}f}"


def _share(part: float | None, whole: float | None) -> str | None:
    return f"{part / whole * 100:.1f} %" if part and whole else None
