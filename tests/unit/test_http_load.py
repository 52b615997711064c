"""A load of the engine `http` on a line that a clock stands in for."""

import socket
import time
from typing import Any

from services.runner.confined import Channel
from services.runner.http_child.connection import Connection, Endpoint
from services.runner.http_child.load import Limits, Load
from services.runner.http_child.streams import Stream
from services.runner.http_child.tasks import Loop, Steps, Wait


class Silent(Channel):
    """Has no parent to tell."""

    def __init__(self) -> None:
        """Leave stdout alone."""

    def send(self, kind: str, /, **content: Any) -> None:
        """Tell nobody."""


def idle(connection: Connection) -> Steps[None]:
    """Carry nothing."""
    try:
        yield Wait(time.monotonic() + 60)
    finally:
        connection.close()


def stream() -> Stream:
    """Return a stream that the server takes part in."""
    connection = Connection(Endpoint("here", socket.AF_INET, ("127.0.0.1", 1), timeout_s=1))
    return Stream(connection, idle(connection), warm=True)


def test_a_warm_up_leaves_bytes_to_measure_with() -> None:
    """On a line that goes on getting faster until the bytes are used up, the rest of them gives a figure, not a failure."""
    began = time.monotonic()
    limits = Limits(
        longest_s=30,
        shortest_s=2.5,
        max_bytes=90_000_000,
        slice_s=0.05,
        first_streams=2,
        most_streams=2,
        silence_s=5,
        round_trip_s=0.3,  # the rate grows by a fifth in two of them: slow start, as far as can be told
        added_s=lambda _: None,
        carried=lambda: int(17_320_000 * (time.monotonic() - began) ** 1.5),
    )
    loaded = Load(Loop(), "download", stream, limits, Silent()).run(lambda _: True)
    assert loaded.stopped_by == "bytes"
    assert 1.9 < loaded.warm_up_s < 2.6
    assert 290e6 < loaded.rate_bps < 370e6
