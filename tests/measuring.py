"""The processes in which engines measure, as a test sees them."""

from collections.abc import Mapping
from typing import Any

import psutil
import pytest

from tests.standin.pacer import Passed


def processes(module: str) -> list[psutil.Process]:
    """Return those that run this module for this process now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if module in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def memory_bytes(module: str) -> int:
    """Return how much memory the largest of them has, 0 when there is none: one may end at any moment."""
    largest = 0
    for process in processes(module):
        try:
            largest = max(largest, process.memory_info().rss)
        except psutil.Error:
            continue
    return largest


def carried(line: Passed, window: Mapping[str, float], most_bps: float, within: float = 0.05) -> Any:
    """Return the rate that a line had in the seconds in which it was measured, which is its own but on a busy machine.

    Raises: AssertionError when it let through more than it may.
    """
    rate = line.bps(window)
    assert rate < most_bps
    return pytest.approx(rate, rel=within)
