"""A stand-in for speedtest.net: the legacy protocol over real sockets on loopback, with faults to order.

    with StandIn(download_bps=50e6, faults={"upload": "500"}) as server:
        environment = server.environment()

A process with that environment sends its requests for the configuration and the list to the stand-in (as to a proxy), and
the list names the stand-in as the only test servers. `python -m tests.standin --port 8080` serves people.
"""

from tests.standin.faults import FAULTS, ROUTES
from tests.standin.server import StandIn

__all__ = ["FAULTS", "ROUTES", "StandIn"]
