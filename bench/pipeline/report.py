"""What was measured, as a table and against its bars."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Protocol

HEADINGS = (
    "side",
    "rows/s",
    "CPU s per 1,000",
    "of which publisher / workers / broker / PostgreSQL",
    "PSS (MB)",
    "tick to row p50 / p99 (ms)",
)
_PARTS = ("publisher", "workers", "broker", "PostgreSQL")
OURS, ALWAYS, TUNED, LATE, LOGGED = (
    "Refresher",
    "Refresher, `sync_interval: always`",
    "Celery",
    "Celery, `acks_late`",
    "Celery, `acks_late`, AOF",
)


class Measured(Protocol):
    """What `bench.pipeline` measured of a side."""

    rates: list[float]
    cpu: list[dict[str, float]]
    memory: list[int]
    latencies: list[float]


def rows(measured: Mapping[str, Measured]) -> list[tuple[str, ...]]:
    """Return a row of every side."""
    return [
        (
            name,
            _spread(each.rates, ",.0f"),
            _spread(_totals(each), ".2f"),
            " / ".join(f"{median(used[part] for used in each.cpu):.2f}" for part in _PARTS),
            f"{max(each.memory) / 2**20:.0f}",
            f"{_percentile(each.latencies, 0.5):.1f} / {_percentile(each.latencies, 0.99):.1f}",
        )
        for name, each in measured.items()
    ]


def verdicts(measured: Mapping[str, Measured]) -> list[str]:
    """Return a line for each bar: what was reached, and whether that is enough."""
    ours, always, tuned = measured[OURS], measured[ALWAYS], measured[TUNED]
    p50, p99 = (_percentile(tuned.latencies, share) / _percentile(ours.latencies, share) for share in (0.5, 0.99))
    cpu = median(_totals(tuned)) / median(_totals(ours))
    reached = [
        ("rows/s of Celery", _ratio(ours.rates, tuned.rates), 25.0),
        ("rows/s of Celery with `acks_late`", _ratio(ours.rates, measured[LATE].rates), 30.0),
        ("as many results per CPU second as Celery", cpu, 20.0),
        ("rows/s of `acks_late` with AOF, with `sync_interval: always`", _ratio(always.rates, measured[LOGGED].rates), 5.0),
        ("as fast from tick to row as Celery, p50", p50, 1.8),
        ("the same, p99", p99, 1.0),
    ]
    return [f"- {value:.1f} × {what} (bar {bar:g} ×{'' if value >= bar else ': **missed**'})" for what, value, bar in reached]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: what slowed the machine down in a round did so to both."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def _totals(measured: Measured) -> list[float]:
    return [sum(used.values()) for used in measured.cpu]


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
