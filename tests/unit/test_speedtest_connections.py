"""The library's connections: of several addresses that cannot be reached, which error counts."""

import errno
import socket
from http.client import HTTPConnection, HTTPSConnection
from types import SimpleNamespace

import pytest

from services.runner.speedtest_child.audit import Audit
from services.runner.speedtest_child.run import Order, Run

REFUSED = (socket.AF_INET, ("127.0.0.1", 1))
NO_WAY = (socket.AF_INET, ("224.0.0.1", 1))  # TCP to a group: no machine has a way there


@pytest.fixture
def _in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare a run, and undo what it does to the process, which is its own elsewhere."""
    monkeypatch.setattr(socket, "create_connection", socket.create_connection)
    library = SimpleNamespace(build_opener=None, SpeedtestHTTPConnection=HTTPConnection, SpeedtestHTTPSConnection=HTTPSConnection)
    order = Order([], [], None, 1, 1, https=True, download=True, upload=True)
    Run(library, order, Audit(), channel=None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_in_the_child")
@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        ([REFUSED, NO_WAY], errno.ECONNREFUSED),
        ([NO_WAY, REFUSED], errno.ECONNREFUSED),
        ([NO_WAY, NO_WAY], errno.ENETUNREACH),
    ],
)
def test_no_way_for_one_address_is_not_a_line_that_is_down(
    addresses: list[tuple[int, tuple[str, int]]], reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that refuses by IPv4 was reached, although there is no way to its address of IPv6, which is tried last."""
    found = [(family, socket.SOCK_STREAM, 0, "", address) for family, address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    with pytest.raises(OSError, match=r"refused|unreachable") as caught:
        socket.create_connection(("two.addresses", 1), 1, None)
    assert caught.value.errno == reason
