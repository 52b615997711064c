"""What was measured, as a table and against its bars."""

from collections.abc import Sequence

from bench.scheduler.fires import Measured

HEADINGS = (
    "side",
    "fired of due in a minute",
    "late p50 / p99 / longest (ms)",
    "CPU of a core",
    "PSS (MB)",
    "start to first fire (s)",
    "all due at once: fires/s",
)
LATE_MS = {10_000: 10.0, 100_000: 250.0}
"""The bar of the 99th percentile, by number of schedules."""
RATIO = {10_000: 500.0}
LOADED_S = {100_000: 1.0}


def rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Return a row of each side."""
    return [
        (
            each.side,
            f"{len(each.minute.fires):,} of {each.minute.wanted:,}",
            " / ".join(f"{each.minute.late_ms(share):,.1f}" for share in (0.5, 0.99, 1)) if each.minute.fires else "–",
            f"{each.minute.cpu:.1%}",
            f"{each.minute.memory_bytes / 2**20:.0f}",
            f"{each.first_after_s:.1f}",
            f"{each.burst.rate:,.0f} ({each.burst.fired:,} in {each.burst.took_s:.2f} s)",
        )
        for each in measured
    ]


def verdicts(count: int, measured: Sequence[Measured]) -> list[str]:
    """Return a line for each bar: what was reached, and whether that is enough. Ours comes first."""
    ours, told = measured[0], []
    if count in LATE_MS:
        p99 = ours.minute.late_ms(0.99)
        told.append(f"- p99 {p99:.1f} ms late{_judged(p99 <= LATE_MS[count], f'{LATE_MS[count]:g} ms')}")
    if len(ours.minute.fires) < ours.minute.wanted:
        told.append(f"- **{ours.minute.wanted - len(ours.minute.fires):,} instants have no tick**")
    if count in RATIO and len(measured) > 1:
        ratio = ours.burst.rate / measured[1].burst.rate
        told.append(f"- a burst {ratio:,.0f} × as fast as {measured[1].side}'s{_judged(ratio >= RATIO[count], f'{RATIO[count]:g} ×')}")
    if ours.loaded_s is not None:
        bar = _judged(ours.loaded_s <= LOADED_S[count], f"{LOADED_S[count]:g} s") if count in LOADED_S else ""
        told.append(f"- read, checked and planned in {ours.loaded_s:.2f} s{bar}")
    return told


def _judged(is_enough: bool, bar: str) -> str:
    return f" (bar {bar}{'' if is_enough else ': **missed**'})"
