"""The tables of docs/benchmarks.md, each between its markers: a benchmark writes its own, nobody types a figure."""

import re
from collections.abc import Sequence
from pathlib import Path


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return ["| " + " | ".join(each) + " |" for each in (headings, ("---",) * len(headings), *rows)]


def write(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between the markers of a benchmark.

    Raises: ValueError when the page has no such markers.
    """
    begin, end = f"<!-- {name}: written by make bench-{name} -->", f"<!-- end of {name} -->"
    text, found = re.subn(
        f"{re.escape(begin)}.*{re.escape(end)}", lambda _: "\n".join((begin, "", *lines, "", end)), page.read_text(), flags=re.DOTALL
    )
    if not found:
        raise ValueError(f"{page} has no markers of {name}: {begin} and {end}")
    page.write_text(text)
