"""The processes in which engines measure, as a test sees them."""

import psutil


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
