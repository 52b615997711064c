"""Publish tasks as told on standard input: `<number> <a second, 0: as fast as it goes> <name>` a line."""

import importlib
import sys
import time
from datetime import UTC, datetime
from uuid import uuid4


def main(peer: str) -> None:
    """Answer each line with `done` when its tasks are with the broker."""
    send = importlib.import_module(f"bench.pipeline.peers.{peer}").send
    print("ready", flush=True)
    for line in sys.stdin:
        number, rate, name = line.split()
        for each in range(int(number)):
            send(str(uuid4()), datetime.now(UTC).isoformat(), f"{name}-{each}")
            if float(rate):
                time.sleep(1 / float(rate))
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
