"""Reads the order, confines the process, measures, says how it ended."""

import gc
import json
import sys
from typing import Any

from services.runner.confined import Channel, Failed, confine
from services.runner.ndt7_child.run import Order, Run

ADDRESS_SPACE_BYTES = 256 * 2**20


def main() -> None:
    """Measure once."""
    channel = Channel()
    command: dict[str, Any] = json.load(sys.stdin)
    confine(command.pop("parent"), command.pop("seconds"), ADDRESS_SPACE_BYTES)
    gc.freeze()
    try:
        channel.send("answer", **Run(Order(**command), channel).measure())
    except Failed as failure:
        channel.fail(failure.kind, str(failure))
    except MemoryError:
        channel.fail("crashed", f"the measurement needed more than {ADDRESS_SPACE_BYTES >> 20} MB of memory")


if __name__ == "__main__":
    main()
