"""`python -m tests.standin`: serve until interrupted."""

import argparse
import contextlib
import signal

from tests.standin.faults import FAULTS, ROUTES, STATUSES
from tests.standin.pages import World
from tests.standin.server import StandIn


def main() -> None:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.standin",
        description="A stand-in for speedtest.net.",
        epilog=f"Routes: {', '.join(ROUTES)}, all. Faults: refused, {', '.join((*STATUSES, *FAULTS))}.",
    )
    parser.add_argument("--address", default="127.0.0.1", help="where to listen; loopback if left out")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--download-bps", type=float, metavar="BPS", help="the line's rate in bit/s; not limited if left out")
    parser.add_argument("--upload-bps", type=float, metavar="BPS")
    parser.add_argument("--seconds", type=int, default=2, help="how long a test in one direction takes")
    parser.add_argument("--fault", action="append", default=[], metavar="ROUTE=FAULT", help="may be given several times")
    parser.add_argument("--fast", action="store_true", help="read and write as much at once as it can: the line is slow by itself")
    flags = parser.parse_args()
    world = World()
    world.download["testlength"] = world.upload["testlength"] = str(flags.seconds)
    try:
        server = StandIn(
            address=flags.address,
            port=flags.port,
            fast=flags.fast,
            download_bps=flags.download_bps,
            upload_bps=flags.upload_bps,
            faults=dict(fault.split("=", 1) for fault in flags.fault),
            world=world,
        )
    except ValueError as error:
        parser.error(f"--fault takes ROUTE=FAULT: {error}")
    with server:
        print(" ".join(f"{name}={value}" for name, value in server.environment().items()), flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
