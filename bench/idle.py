"""What the idle embedded system costs: `make bench-idle`.

CPU is what all its processes used over a minute, as a share of one core; memory is the sum of their proportional set
sizes (PSS), which counts every shared page once.
"""

import sys
import time

from bench.machine import describe, system

SETTLE_S = 20
MEASURE_S = 60
CPU_BAR = 3.0
MEMORY_BAR_MB = 350


def main() -> int:
    """Measure and print; exit with 1 when a bar is missed."""
    sys.stdout.write(f"{describe()}\n")
    with system() as up:
        time.sleep(SETTLE_S)
        processes = up.processes()
        before = [process.cpu_times() for process in processes]
        time.sleep(MEASURE_S)
        total_cpu = total_memory = 0.0
        for process, then in zip(processes, before, strict=True):
            now = process.cpu_times()
            cpu = 100 * (now.user + now.system - then.user - then.system) / MEASURE_S
            memory = process.memory_full_info().pss / 2**20
            total_cpu, total_memory = total_cpu + cpu, total_memory + memory
            sys.stdout.write(f"{cpu:6.2f} % {memory:7.1f} MB  {' '.join(process.cmdline())[-60:]}\n")
    sys.stdout.write(f"{total_cpu:6.2f} % of one core (bar {CPU_BAR} %), {total_memory:.1f} MB (bar {MEMORY_BAR_MB} MB)\n")
    return int(total_cpu >= CPU_BAR or total_memory >= MEMORY_BAR_MB)


if __name__ == "__main__":
    sys.exit(main())
