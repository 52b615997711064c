"""A progress bar for a test that runs, on stderr, for whoever looks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.cli.output import clean, megabits

Report = Callable[..., None]


@contextmanager
def meter() -> Iterator[Report]:
    """Give a function `report(phase, fraction=None, rate_bps=None)` that moves a bar; without a terminal it does nothing."""
    if not sys.stderr.isatty():
        yield lambda *_, **__: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    phase = TextColumn("{task.description}", markup=False)
    rate = TextColumn("{task.fields[rate]:>16}", markup=False)
    with Progress(SpinnerColumn(), phase, BarColumn(), rate, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None, rate="")

        def report(phase: str, fraction: float | None = None, rate_bps: float | None = None) -> None:
            shown = f"{megabits(rate_bps)} Mbit/s" if rate_bps else ""
            progress.update(
                task, description=f"{clean(phase):<12}", total=None if fraction is None else 1, completed=fraction or 0, rate=shown
            )

        yield report
