"""What the processes of a side used, part by part."""

import contextlib
from collections.abc import Mapping, Sequence

import psutil

Parts = Mapping[str, Sequence[psutil.Process]]
"""The processes that were started for each part; theirs are counted with them."""


def cpu_s(parts: Parts) -> dict[str, float]:
    """Return the CPU seconds of every part so far; those of children that have ended count too."""
    return {name: sum(map(_cpu_s, processes)) for name, processes in parts.items()}


def memory_bytes(parts: Parts) -> int:
    """Return the sum of the proportional set sizes, which counts every shared page once."""
    total = 0
    for processes in parts.values():
        for process in (each for root in processes for each in (root, *root.children(recursive=True))):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total


def _cpu_s(root: psutil.Process) -> float:
    own = root.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:2])
    return total
