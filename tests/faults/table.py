"""The plugin of pytest that tells each scenario's figures when it ends, and all of them at the end."""

import re
from pathlib import Path

import pytest

from bench.machine import describe
from tests.faults.scenario import HEADINGS, cells

PROPERTY = "figures"
BEGIN, END = "<!-- table: written by make test-faults -->", "<!-- end of table -->"


class Table:
    """Collects the figures, which come with the reports of tests: also from other processes."""

    def __init__(self, page: Path | None) -> None:
        self._page = page
        self._lines: list[tuple[str, ...]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the figures of a scenario when it has been torn down."""
        if report.when == "teardown":
            for line in [cells(value) for name, value in report.user_properties if name == PROPERTY]:  # type: ignore[arg-type]
                self._lines.append(line)
                if self._page:
                    print("  ".join(("", *filter(None, line))), flush=True)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the table to the terminal, and into the page that was asked for."""
        if not self._lines:
            return
        terminalreporter.section("faults")
        widths = [max(len(line[column]) for line in (HEADINGS, *self._lines)) for column in range(len(HEADINGS) - 1)]
        for line in (HEADINGS, *self._lines):
            fitted = (
                cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths, strict=False))
            )
            terminalreporter.write_line("  ".join((*fitted, line[-1])).rstrip())
        if self._page:
            self._write(self._page)
            terminalreporter.write_line(f"written to {self._page}")

    def _write(self, page: Path) -> None:
        rows = ["| " + " | ".join(line) + " |" for line in (HEADINGS, ("---",) * len(HEADINGS), *self._lines)]
        table = "\n".join((BEGIN, "", f"Measured on {describe()}.", "", *rows, "", END))
        page.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: table, page.read_text(), flags=re.DOTALL))
