"""Reads the order, confines the process, watches the run, says how it ended."""

import importlib
import json
import os
import sys
import threading
import time
from typing import Any

from services.runner.confined import Channel, Failed, confine
from services.runner.speedtest_child.audit import Audit
from services.runner.speedtest_child.run import Order, Run

ADDRESS_SPACE_BYTES = 2**30
"""The library's own need is about 300 MB; more is a server that feeds it without end."""
LOOK_EVERY_S = 0.05
REPORT_EVERY = 5
"""Every so many looks: four times a second."""
OUT_OF_MEMORY = f"the library needed more than {ADDRESS_SPACE_BYTES >> 20} MB of memory"


def main() -> None:
    """Run one speed test."""
    channel = Channel()
    command: dict[str, Any] = json.load(sys.stdin)
    confine(command.pop("parent"), command.pop("seconds"), ADDRESS_SPACE_BYTES)
    order = Order(**command)
    audit = Audit()
    threading.excepthook = lambda raised: _give_up(channel, raised.exc_value)
    threading.Thread(target=_watch, args=(audit, order.max_bytes, channel), daemon=True).start()
    try:
        # only here: importing it opens stdout and stderr a second time
        answer = Run(importlib.import_module("speedtest"), order, audit, channel).measure()
        channel.send("answer", **answer)
    except Failed as failure:
        channel.fail(failure.kind, str(failure))
    except MemoryError:
        channel.fail("crashed", OUT_OF_MEMORY)


def _watch(audit: Audit, max_bytes: int, channel: Channel) -> None:
    """End the process when it has moved too many bytes; else report the rate of the moment."""
    reported_bytes, reported_at, looks = 0, time.monotonic(), 0
    while True:
        time.sleep(LOOK_EVERY_S)
        looks += 1
        audit.look()
        total = audit.total_bytes()
        if total > max_bytes:
            channel.fail("byte_limit", f"stopped in the {audit.phase}: more than max_bytes = {max_bytes} bytes had been transferred")
            os._exit(0)
        if looks % REPORT_EVERY == 0 and audit.length_s:
            now = time.monotonic()
            channel.send(
                "progress",
                phase=audit.phase,
                fraction=min(1.0, (now - audit.began_at) / audit.length_s),
                rate_bps=max(0, total - reported_bytes) * 8 / (now - reported_at),
            )
            reported_bytes, reported_at = total, now


def _give_up(channel: Channel, error: BaseException | None) -> None:
    """Say why a thread of the library died: the library itself would wait for it for ever."""
    channel.fail("crashed", OUT_OF_MEMORY if isinstance(error, MemoryError) else f"a thread of the library died: {error!r}")
    os._exit(1)


if __name__ == "__main__":
    main()
