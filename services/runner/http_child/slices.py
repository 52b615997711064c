"""From bytes counted in short slices to a rate: when the line is warm, when enough is known, and how sure it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median, quantiles

GROWING = 1.10
"""A window this much above the one before is still slow start, which doubles the rate every round trip (RFC 5681)."""
AGREE = 0.01
STILL_RISING = 1.05
GROUPS = 16
PAUSE_SHARE = 0.5
"""Of the usual rate: a part of the time that carried less was a pause."""
PAUSE_WITHIN = 0.02
"""A pause that puts the slope further off than that from the plain mean leaves no statistic that can be relied on."""

Mark = tuple[float, int, float]
"""A moment of the monotonic clock, the bytes carried until then, the processor time that this process wanted until then."""


def rate_bps(marks: Sequence[Mark]) -> float:
    """Return the rate in bit/s: the slope of the line through the byte counts with the least squares.

    That is a mean of the slices' rates in which those at the ends weigh little: what is out of order, or on its way back as an
    acknowledgement, when the first or the last count is taken, hardly matters. On lines of 1 to 20 Mbit/s it lay within 0.3 % of
    what passed on the wire (once 0.7 %, at 1 Mbit/s), where the plain mean, the trimmed mean and the median of the same slices
    were up to 1.8, 0.7 and 3 % off (docs/accuracy.md).
    """
    at = fmean(mark[0] for mark in marks)
    carried = fmean(mark[1] for mark in marks)
    products = math.fsum((mark[0] - at) * (mark[1] - carried) for mark in marks)
    return products / math.fsum((mark[0] - at) ** 2 for mark in marks) * 8


def fair_bps(marks: Sequence[Mark]) -> tuple[float, bool]:
    """Return the rate in bit/s, and whether the line paused.

    The slope weighs the middle by half more than the mean does: a pause there of a tenth of the time would cost the rate 15 %.
    With one it is the plain mean, which is what was carried.
    """
    slope, (first, *_, last) = rate_bps(marks), marks
    mean = (last[1] - first[1]) * 8 / (last[0] - first[0])
    parts = rates_bps(marks[:: max(1, len(marks) // GROUPS)])
    has_paused = min(parts) < PAUSE_SHARE * median(parts) and abs(slope - mean) > PAUSE_WITHIN * mean
    return (mean if has_paused else slope), has_paused


def rates_bps(marks: Sequence[Mark]) -> list[float]:
    """Return the rate of each slice between two marks."""
    return [(after[1] - before[1]) * 8 / (after[0] - before[0]) for before, after in pairwise(marks)]


def spread(marks: Sequence[Mark]) -> float:
    """Return how far the rate varied: the range of the middle half as a share of the median, of about sixteen parts of the time.

    A single slice of a slow line is a few packets, and varies by one of them.
    """
    low, middle, high = quantiles(rates_bps(marks[:: max(1, len(marks) // GROUPS)]), n=4)
    return (high - low) / middle if middle > 0 else math.inf


def disagreement(marks: Sequence[Mark]) -> float:
    """Return by what share the rate of the second half lies above (or, negative, below) that of the first half."""
    half = len(marks) // 2
    first, second = rate_bps(marks[: half + 1]), rate_bps(marks[half:])
    return second / first - 1 if first > 0 else math.inf


def until_the_end(marks: Sequence[Mark]) -> list[Mark]:
    """Return the marks but for the slice in which the last byte came, and those in which nobody knew yet that it was the last."""
    kept = list(marks)
    while len(kept) > 1 and kept[-1][1] == kept[-2][1]:
        kept.pop()
    return kept[:-1] if len(kept) > 1 else kept


@dataclass
class Growth:
    """Tells from rates, one per slice, when a number of streams has reached all that it can.

    That is when a window of slices no longer exceeds the one before by a tenth.
    """

    window: int
    """How many slices are compared at a time: two round trips at least."""
    rates: list[float] = field(default_factory=list)

    def plateau(self) -> float | None:
        """Return the rate that is no longer growing; None as long as it grows."""
        if len(self.rates) < 2 * self.window:
            return None
        before, last = fmean(self.rates[-2 * self.window : -self.window]), fmean(self.rates[-self.window :])
        return last if 0 < last <= before * GROWING else None
