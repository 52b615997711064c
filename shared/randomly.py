"""Instants at random, the same for whoever works them out: gaps are drawn from a name and a number, not from a generator's state.

The time since 1970 is cut into pages, and each page is drawn for itself, so that any instant is found without the ones before
it. The gap between the last instant of a page and the first of the next keeps the bounds too: one that is too long is halved.
Exponential gaps, moved to the bounds where they lie outside, are what M-Lab asks of clients that test by themselves
(its `memoryless` library: at least 0.1, at most 2.5 times the mean).
"""

import math
from bisect import bisect_left, bisect_right
from functools import lru_cache
from hashlib import blake2b

from shared.schedules import Random

_GAPS_PER_PAGE = 20


def after(timing: Random, key: str, second: int) -> int:
    """Return the first instant strictly after a second, both in seconds since 1970."""
    drawn = _Drawn(key, timing.mean_s, *timing.bounds_s())
    number = second // drawn.page_s
    while True:
        page = _page(drawn, number)
        place = bisect_right(page, second)
        if place < len(page):
            return page[place]
        number += 1


def before(timing: Random, key: str, second: int) -> int:
    """Return the last instant that is not after a second, both in seconds since 1970."""
    drawn = _Drawn(key, timing.mean_s, *timing.bounds_s())
    number = second // drawn.page_s + 1  # an instant that halves a gap may lie in the page before its own
    while True:
        page = _page(drawn, number)
        place = bisect_left(page, second + 1)
        if place:
            return page[place - 1]
        number -= 1


class _Drawn(tuple[str, int, int, int]):
    """Key, mean, shortest and longest gap in seconds."""

    __slots__ = ()

    def __new__(cls, key: str, mean_s: int, min_s: int, max_s: int) -> "_Drawn":
        return super().__new__(cls, (key, mean_s, min_s, max_s))

    @property
    def page_s(self) -> int:
        return _GAPS_PER_PAGE * self[3]

    def gap_s(self, page: int, number: int) -> int:
        key, mean, shortest, longest = self
        share = int.from_bytes(blake2b(f"{key}:{page}:{number}".encode(), digest_size=8).digest()) / 2**64
        return min(max(round(-mean * math.log(1 - share)), shortest), longest)


@lru_cache(maxsize=4_096)
def _page(drawn: _Drawn, number: int) -> tuple[int, ...]:
    """Return the instants of a page, and before them the one that halves the gap from the page before."""
    found = _alone(drawn, number)
    last = _alone(drawn, number - 1)[-1]
    if found[0] - last > drawn[3]:
        return ((last + found[0]) // 2, *found)
    return found


@lru_cache(maxsize=4_096)
def _alone(drawn: _Drawn, number: int) -> tuple[int, ...]:
    start = number * drawn.page_s
    instant, end = start, start + drawn.page_s
    found: list[int] = []
    while (instant := instant + drawn.gap_s(number, len(found))) < end:
        found.append(instant)
    return tuple(found)
