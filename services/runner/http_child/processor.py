"""How much of a processor this process wants, be it given that or not."""

import time
from pathlib import Path


def wanted_s() -> float:
    """Return for how many seconds this process has used a processor, or waited for one that others had or a quota withheld.

    The waiting is the second number of Linux's /proc/self/schedstat, in nanoseconds (Documentation/scheduler/sched-stats.rst);
    elsewhere nothing is known of it.
    """
    return time.process_time() + _waited_s()


def _waited_s() -> float:
    try:
        return int(Path("/proc/self/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):  # no Linux, or one that keeps no account
        return 0
