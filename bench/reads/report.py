"""The table of reads in docs/benchmarks.md, between its markers."""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.reads.load import Taken

BEGIN, END = "<!-- reads: written by make bench-reads -->", "<!-- end of reads -->"
HEADINGS = (
    "read",
    "connections",
    "p50 (ms)",
    "p99 (ms)",
    "bar, p50",
    "requests/s",
    "Django: p50 (ms)",
    "p99 (ms)",
    "requests/s",
    "ratio of requests/s",
)


@dataclass(frozen=True)
class Export:
    """How the export of many results went."""

    rows: int
    size: int
    first_s: float
    whole_s: float
    grown: int
    """How many bytes the API's memory grew at most."""


@dataclass(frozen=True)
class Whole:
    """All that was measured."""

    machine: str
    rows: int
    size: int
    rounds: int
    bars: dict[str, float | None]
    """Of the p50 on one connection, by read."""
    taken: dict[tuple[str, str, int], list[Taken]]
    """The rounds by read, side (refresher, its memory, django) and connections."""
    export: Export


def text(whole: Whole) -> str:
    """Return the section: medians of the rounds, and from the lowest to the highest."""
    rows = [_row(whole, *taken) for taken in whole.taken if taken[1] != "django"]
    export = whole.export
    return "\n".join(
        (
            f"Measured on {whole.machine}: {whole.rows:,} results of 50 sites and a year, {whole.size / whole.rows:,.0f} MB per",
            f"million with indexes. One worker a side, in turns; medians of {whole.rounds} rounds (lowest to highest).",
            "",
            *("| " + " | ".join(each) + " |" for each in (HEADINGS, ("---",) * len(HEADINGS), *rows)),
            "",
            f"An export of {export.rows:,} results as NDJSON ({export.size / 1e6:,.0f} MB):",
            f"first byte after {export.first_s * 1e3:.0f} ms, {export.size / 1e6 / export.whole_s:.0f} MB/s,",
            f"{export.rows / export.whole_s:,.0f} rows/s; the API's memory grew by {export.grown / 1e6:.0f} MB.",
        )
    )


def write(page: Path, section: str) -> None:
    """Put the section between the markers of a page."""
    whole = "\n".join((BEGIN, "", section, "", END))
    page.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: whole, page.read_text(), flags=re.DOTALL))


def _row(whole: Whole, name: str, side: str, connections: int) -> tuple[str, ...]:
    ours, theirs = (whole.taken.get((name, each, connections), []) for each in (side, "django"))
    bar = whole.bars[name] if connections == 1 and side == "refresher" else None
    ratios = [our.per_second / their.per_second for our, their in zip(ours, theirs, strict=False)]
    return (
        f"{name}, from memory" if side == "memory" else name,
        str(connections),
        *_latency(ours),
        "–" if bar is None else f"{bar:g}",
        _rate(ours),
        *_latency(theirs),
        _rate(theirs),
        _spread(ratios, "{:.1f} ×"),
    )


def _latency(rounds: list[Taken]) -> tuple[str, str]:
    return _spread([each.percentile_ms(0.5) for each in rounds], "{:,.1f}"), _spread(
        [each.percentile_ms(0.99) for each in rounds], "{:,.1f}"
    )


def _rate(rounds: list[Taken]) -> str:
    return _spread([each.per_second for each in rounds], "{:,.1f}")


def _spread(values: list[float], form: str) -> str:
    if not values:
        return "–"
    middle, least, most = (form.format(each) for each in (median(values), min(values), max(values)))
    return f"**{middle}** ({least} to {most})"
