"""A link in userspace: two TAP devices joined with constant delay and seeded random loss.

`python -m bench.accuracy.delay NEAR FAR DELAY_S LOSS SEED` makes both devices in the network namespace that it is run in, says
`ready`, carries until SIGTERM, and then says as JSON what it carried and lost in each direction. It stands in for netem,
which some kernels lack. Without loss the devices take packets of up to 64 kB that nobody has cut into segments yet, so that a few
thousand reads a second carry gigabits; with loss every packet is a frame of its own, for it is frames that get lost.
"""

import ctypes
import fcntl
import json
import os
import random
import select
import signal
import struct
import sys
from collections import deque
from dataclasses import dataclass, field
from time import monotonic

# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
PR_SET_TIMERSLACK = 29  # linux/prctl.h
WHOLE = 65_536 + 128
"""A packet of 64 kB with its Ethernet header, and the header that says how it is to be cut."""
AT_ONCE = 256
"""Reads of one device before the other one has its turn."""


def tap(name: str, *, offload: bool) -> int:
    """Make a TAP device and return its file; the device is gone when the file is closed."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN if offload else 0)
    return device


@dataclass
class Direction:
    """One way through the link. The delay is the same for all, so who came first leaves first, and a deque will do."""

    source: int
    sink: int
    delay_s: float
    loss: float
    luck: random.Random
    waiting: "deque[tuple[float, bytes]]" = field(default_factory=deque)
    carried: int = 0
    lost: int = 0

    def take(self) -> None:
        """Read what has arrived."""
        for _ in range(AT_ONCE):
            try:
                frame = os.read(self.source, WHOLE)
            except BlockingIOError:
                return
            if self.loss and self.luck.random() < self.loss:
                self.lost += 1
            else:
                self.waiting.append((monotonic() + self.delay_s, frame))

    def give(self) -> float | None:
        """Write what is due, and return when the next one is."""
        waiting = self.waiting
        while waiting and waiting[0][0] <= monotonic():
            os.write(self.sink, waiting.popleft()[1])
            self.carried += 1
        return waiting[0][0] if waiting else None


def carry(directions: tuple[Direction, Direction]) -> None:
    """Carry until interrupted."""
    by_source = {each.source: each for each in directions}
    while True:
        due = [at for each in directions if (at := each.give()) is not None]
        # select: epoll rounds its timeout up to a millisecond
        readable, _, _ = select.select(by_source, (), (), max(0.0, min(due) - monotonic()) if due else None)
        for source in readable:
            by_source[source].take()


def main(near: str, far: str, delay_s: str, loss: str, seed: str) -> None:
    """Make the devices and carry."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)  # nanosecond: else every wait may last 50 microseconds longer
    ends = [tap(name, offload=not float(loss)) for name in (near, far)]
    directions = tuple(
        Direction(source, sink, float(delay_s), float(loss), random.Random(f"{seed} {way}"))
        for way, (source, sink) in {"up": ends, "down": reversed(ends)}.items()
    )
    print("ready", flush=True)
    try:
        carry(directions)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        up, down = directions
        print(json.dumps({"up": [up.carried, up.lost], "down": [down.carried, down.lost]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
