"""What a scenario measured, the bars that it is held to, and its line in the table."""

from dataclasses import asdict, dataclass, field
from datetime import timedelta
from statistics import median
from typing import Any

from tests.faults.ledger import Account
from tests.faults.usage import Spent

RECOVERS_WITHIN_S = 2.0
"""From the end of a fault to the first new row."""
REJOINS_WITHIN_S = 5.0
"""The same where servers elect a leader."""
RESTARTS_WITHIN_S = 30.0
"""The same where a process has to be started again."""
SHARE_OF_A_CORE = 0.2
"""What a service may take of one core while what it talks to is away."""
GROWTH_MB = 100.0


@dataclass
class Figures:
    """One line of the table; None where a scenario has no such figure."""

    scenario: str
    held: bool = False
    expected: int | None = None
    stored: int | None = None
    missing: int | None = None
    duplicated: int | None = None
    recovery_s: float | None = None
    """The longest."""
    typical_recovery_s: float | None = None
    """The median."""
    cpu: float | None = None
    """The most that a service took of one core."""
    growth_mb: float | None = None
    """The most that a service grew."""
    remarks: list[str] = field(default_factory=list)


class Scenario:
    """Collects what a scenario finds, and judges it at the end: so that a table is whole even where a bar is missed."""

    def __init__(self, name: str) -> None:
        self.figures = Figures(name)
        self._broken: list[str] = []
        self._recoveries: list[float] = []

    def recovered(self, after_s: float, within_s: float = RECOVERS_WITHIN_S) -> None:
        """Note how long it took until a new row was there, and how long it may take."""
        self._recoveries.append(after_s)
        self.figures.recovery_s = max(self._recoveries)
        self.figures.typical_recovery_s = median(self._recoveries)
        if after_s > within_s:
            self._broken.append(f"recovered after {after_s:.1f} s, not within {within_s:.0f} s")

    def spent(self, spent: dict[str, Spent]) -> None:
        """Note what services took while something was away."""
        for name, each in spent.items():
            self.figures.cpu = max(self.figures.cpu or 0.0, each.cpu)
            self.figures.growth_mb = max(self.figures.growth_mb or 0.0, each.growth_mb)
            if each.cpu >= SHARE_OF_A_CORE:
                self._broken.append(f"{name} took {each.cpu:.0%} of a core")
            if each.growth_mb >= GROWTH_MB:
                self._broken.append(f"{name} grew by {each.growth_mb:.0f} MB")

    def counted(self, account: Account) -> None:
        """Note the account of instants and rows."""
        self.tallied(account.expected.total(), account.stored.total(), account.missing.total(), account.surplus.total())
        self.remark(", ".join(f"{number} {status}" for status, number in sorted(account.statuses.items())))
        if not account.statuses["succeeded"]:
            self._broken.append("nothing ran")
        if account.missing:
            self._broken[-1] += f": {_spans(account)}"

    def tallied(self, expected: int, stored: int, missing: int, duplicated: int) -> None:
        """Note numbers of what was to be stored and of what is."""
        self.figures.expected, self.figures.stored = expected, stored
        self.figures.missing, self.figures.duplicated = missing, duplicated
        if not expected:
            self._broken.append("nothing was expected: nothing was tried")
        if duplicated:
            self._broken.append(f"{duplicated} rows too many")
        if missing:
            self._broken.append(f"{missing} of {expected} missing")

    def remark(self, text: str) -> None:
        """Add what else is worth telling."""
        self.figures.remarks.append(text)

    def judge(self) -> None:
        """Fail, and say which, if a promise was broken or a bar missed."""
        self.figures.held = not self._broken
        assert not self._broken, "; ".join(self._broken)


def _spans(account: Account) -> str:
    """Say when what is missing was due, in spans: the shape of a gap tells its cause."""
    moments = sorted({each[2] for each in account.missing if isinstance(each, tuple)})
    if not moments:
        return "results that were published"
    spans = [[moments[0], moments[0]]]
    for moment in moments[1:]:
        if moment - spans[-1][1] <= timedelta(seconds=1):
            spans[-1][1] = moment
        else:
            spans.append([moment, moment])
    return ", ".join(f"{start:%H:%M:%S}" + (f" to {end:%H:%M:%S}" if end > start else "") for start, end in spans[:20])


HEADINGS = ("scenario", "expected", "stored", "missing", "duplicated", "recovery", "CPU", "growth", "remarks")


def cells(properties: dict[str, Any]) -> tuple[str, ...]:
    """Return a line of the table."""
    figures = Figures(**properties)
    recovery = "" if figures.recovery_s is None else f"{figures.recovery_s:.1f} s"
    if figures.typical_recovery_s is not None and figures.typical_recovery_s != figures.recovery_s:
        recovery += f" (median {figures.typical_recovery_s:.1f} s)"
    return (
        figures.scenario if figures.held else f"{figures.scenario} (NOT HELD)",
        *("" if number is None else f"{number:,}" for number in (figures.expected, figures.stored, figures.missing, figures.duplicated)),
        recovery,
        "" if figures.cpu is None else f"{figures.cpu:.1%}",
        "" if figures.growth_mb is None else f"{figures.growth_mb:.0f} MB",
        "; ".join(remark for remark in figures.remarks if remark),
    )


def properties(figures: Figures) -> dict[str, Any]:
    """Return figures as plain values, which pass from one process of pytest to another."""
    return asdict(figures)
