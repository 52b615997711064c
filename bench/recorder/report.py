"""What was measured, as a table and against its bar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.machine import describe
from bench.page import table

RECORDER, TWO, COPY, UNNEST, FETCH = (
    "the recorder",
    "two recorders",
    "asyncpg, COPY",
    "asyncpg, INSERT from unnest",
    "nats-py, `fetch` and `ack`",
)
BAR = 0.75


@dataclass
class Drained:
    """What the recorder did with a backlog."""

    rate: float
    cpu: dict[str, float]
    """CPU seconds per 1,000 results, by part."""
    memory: list[int]
    """Bytes resident, sampled all the while."""
    wal_bytes: float
    disk_bytes: float
    """Both for each result."""


def report(rates: Mapping[str, Sequence[float]], rounds: Sequence[Drained], number: int, drained: Drained, large: int) -> list[str]:
    """Return the table and what it says of the bars; `drained` is the large backlog."""
    ratios = {side: _ratio(rates[RECORDER], each) for side, each in rates.items()}
    rows = [
        (side, f"{median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})", f"{ratios[side]:.2f} ×" if side != RECORDER else "")
        for side, each in rates.items()
    ]
    cpu = {part: median(each.cpu[part] for each in rounds) for part in drained.cpu}
    parts = [f"{drained.memory[len(drained.memory) * tenth // 10] / 2**20:.0f}" for tenth in (1, 5, 9)]
    return [
        f"Measured on {describe()}: {len(rounds)} rounds of {number:,} results, the sides in turns; medians (lowest to highest).",
        "",
        *table(("side", "results/s", "the recorder against it"), rows),
        "",
        f"- {ratios[COPY]:.0%} of what COPY stores (bar {BAR:.0%}{'' if ratios[COPY] >= BAR else ': **missed**'})",
        f"- CPU seconds per 1,000 results: {', '.join(f'{part} {used:.3f}' for part, used in cpu.items())}",
        f"- a backlog of {large:,}: {drained.rate:,.0f} results/s; the recorder's memory after a tenth, half and nine tenths of the time "
        f"{', '.join(parts)} MB, at most {max(drained.memory) / 2**20:.0f} MB",
        f"- there each result took {drained.wal_bytes:,.0f} bytes of WAL, and a million takes {drained.disk_bytes:,.0f} MB on disk"
        " with its indexes",
    ]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: what slowed the machine down in a round did so to both."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))
