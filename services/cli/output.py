"""What the commands write: tables and pairs, in colour on a terminal, separated by tabs elsewhere; JSON, one value a line."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

STATUS_STYLES = {"succeeded": "green", "failed": "red", "missed": "yellow", "skipped": "dim", "ok": "green", "warning": "yellow"}

GAP = "  "
SHORTEST = 40
"""The least room for the last column."""


@dataclass(frozen=True)
class Column:
    """A column of a table; `width` keeps the columns of rows in line that are written one by one."""

    name: str
    width: int = 0
    right: bool = False
    last: bool = False
    """Cut short where the terminal ends, instead of folding."""


def clean(value: object) -> str:
    """Return text that cannot move the cursor, break the line or the column: what comes from far may hold anything."""
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else " " for character in text)


def is_terminal() -> bool:
    """Return whether a person looks at what is written."""
    return sys.stdout.isatty()


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, header: bool = True) -> None:
    """Write rows; a word that names a status has its colour."""
    heading = [[column.name for column in columns]] if header else []
    lines = [*heading, *([clean(cell) for cell in row] for row in rows)]
    if not is_terminal():
        write("".join("\t".join(line) + "\n" for line in lines))
        return
    console = Console()
    widths = [max([column.width, *(cell_len(line[at]) for line in lines)]) for at, column in enumerate(columns)]
    if columns and columns[-1].last:
        before = sum(width + len(GAP) for width in widths[:-1])
        widths[-1] = min(widths[-1], max(console.width - before, SHORTEST))
    for number, line in enumerate(lines):
        cells = [Text(cell, style="bold" if header and number == 0 else STATUS_STYLES.get(cell, "")) for cell in line]
        for cell, column, width in zip(cells, columns, widths, strict=True):
            cell.truncate(width, overflow="ellipsis")
            cell.align("right" if column.right else "left", width)
        # a terminal that is too narrow folds the line itself: nothing but the last column is ever cut
        console.print(Text(GAP).join(cells), soft_wrap=True)


def pairs(values: Mapping[str, object]) -> None:
    """Write names and values, one pair a line, leaving out what is not known."""
    known = {name: clean(value) for name, value in values.items() if value not in {None, ""}}
    if not is_terminal():
        write("".join(f"{name}\t{value}\n" for name, value in known.items()))
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in known.items():
        grid.add_row(Text(name, style="bold"), Text(value, style=STATUS_STYLES.get(value, "")))
    Console().print(grid)


def write_json(value: Any) -> None:
    """Write one JSON value on one line."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


def write(text: str) -> None:
    """Write text at once: whoever reads from the other end of a pipe waits for it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Tell the person something that is no part of the output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def megabits(rate_bps: float | None) -> str:
    """Return a rate in Mbit/s, to three digits or the nearest tenth."""
    if rate_bps is None:
        return ""
    value = rate_bps / 1e6
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def milliseconds(time_s: float | None) -> str:
    """Return a time in milliseconds, to the nearest tenth."""
    return "" if time_s is None else f"{time_s * 1_000:,.1f}"


def local_time(text: str | None) -> str:
    """Return an RFC 3339 moment on the clock of the person at the terminal, as it is in a pipe; empty for none."""
    if text is None or not is_terminal():
        return text or ""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
