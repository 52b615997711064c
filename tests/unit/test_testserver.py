"""The test server's own reckoning: sizes, addresses, tokens."""

import asyncio
import logging
import socket
import zlib

import pytest

from services.testserver import lost, tokens
from services.testserver.addresses import kind, owner, plain
from services.testserver.garbage import BLOCK_BYTES, FILE, MIB, PIECE_BYTES, Garbage, length
from services.testserver.tokens import Tokens


@pytest.mark.parametrize(
    ("asked", "mib"),
    [
        (None, 4), ("", 4), ("0", 4), ("000", 4), ("-1", 4), ("1.5", 4), ("many", 4), ("٣", 4), ("1_0", 4),
        ("1", 1), ("007", 7), ("100", 100), ("1024", 1024), ("1025", 1024), ("9" * 5_000, 1024),
    ],
)  # fmt: skip
def test_the_size_of_a_download_is_bounded_whatever_is_asked(asked: str | None, mib: int) -> None:
    """As in LibreSpeed: MiB, 4 where nothing can be read, at most 1,024."""
    assert length(asked) == mib * MIB


def test_garbage_does_not_compress() -> None:
    """Not by itself, nor because it repeats, within what a compressing line looks back."""
    stream = Garbage()
    pieces = [bytes(stream.piece(10**9)) for _ in range(BLOCK_BYTES // PIECE_BYTES)]
    assert len(set(pieces)) == len(pieces)
    assert {len(piece) for piece in pieces} == {PIECE_BYTES}
    assert len(zlib.compress(b"".join(pieces[:8]))) > 8 * PIECE_BYTES
    assert len(stream.piece(7)) == 7


def test_what_is_sent_from_the_file_is_the_same_row() -> None:
    """The kernel sends the bytes that are written elsewhere, in order, to the end of the block and on from its beginning."""
    if FILE is None:
        pytest.skip("only Linux sends from a file in memory")
    stream, other, ours = Garbage(), Garbage(), bytearray()
    block = b"".join(other.piece(PIECE_BYTES) for _ in range(BLOCK_BYTES // PIECE_BYTES))
    ends = socket.socketpair()
    with ends[0] as sender, ends[1] as receiver:
        while len(ours) < BLOCK_BYTES + PIECE_BYTES:
            sent = stream.send(sender.fileno(), FILE, 50_000)
            assert 0 < sent <= 50_000
            ours += receiver.recv(sent, socket.MSG_WAITALL)
    begins = (block * 2).index(ours[:64])
    assert bytes(ours) == (block * 3)[begins : begins + len(ours)]


def test_two_downloads_do_not_begin_alike() -> None:
    """A cache on the way finds nothing that it has seen."""
    assert len({bytes(Garbage().piece(64)) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("address", "written", "whose", "told"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", "localhost IPv4 access"),
        ("::1", "::1", "::/64", "localhost IPv6 access"),
        ("::ffff:10.1.2.3", "10.1.2.3", "10.1.2.3", "private IPv4 access"),
        ("192.168.1.2", "192.168.1.2", "192.168.1.2", "private IPv4 access"),
        ("172.31.0.1", "172.31.0.1", "172.31.0.1", "private IPv4 access"),
        ("172.32.0.1", "172.32.0.1", "172.32.0.1", None),
        ("100.64.0.1", "100.64.0.1", "100.64.0.1", "CGNAT IPv4 access"),
        ("169.254.1.1", "169.254.1.1", "169.254.1.1", "link-local IPv4 access"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64", "link-local IPv6 access"),
        ("fd00::1", "fd00::1", "fd00::/64", "private IPv6 access"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2:3::4", "2001:db8:1:2::/64", None),
    ],
)
def test_an_address_is_written_counted_and_told(address: str, written: str, whose: str, told: str | None) -> None:
    """IPv4 is IPv4 in whatever socket it came; a limit counts an IPv6 network, because everybody has all of one."""
    assert plain(address) == written
    assert owner(written) == whose
    assert kind(written) == told


def test_a_token_is_good_for_its_address_its_time_and_its_datagrams() -> None:
    """Nothing else is echoed, so nobody can have another flooded."""
    living = Tokens()
    token = living.issue("192.0.2.1", 100)
    assert token is not None
    assert living.spend(token, "192.0.2.1", 100) == "echoed"
    assert living.spend(token, "192.0.2.2", 100) == "unknown"
    assert living.spend(bytes(16), "192.0.2.1", 100) == "unknown"
    assert living.spend(token, "192.0.2.1", 100 + tokens.SECONDS) == "echoed"
    assert living.spend(token, "192.0.2.1", 100.1 + tokens.SECONDS) == "expired"
    second = living.issue("192.0.2.1", 101)
    assert second is not None
    fates = [living.spend(second, "192.0.2.1", 101) for _ in range(tokens.DATAGRAMS + 1)]
    assert fates == ["echoed"] * tokens.DATAGRAMS + ["spent"]


def test_tokens_are_bounded_and_forgotten() -> None:
    """One address has a few, the newest; all together have some thousands; what has expired makes room."""
    living = Tokens()
    own = [living.issue("192.0.2.1", 0) for _ in range(tokens.PER_ADDRESS + 1)]
    fates = [living.spend(each or b"", "192.0.2.1", 0) for each in own]
    assert fates == ["unknown"] + ["echoed"] * tokens.PER_ADDRESS
    others = [living.issue(f"192.0.2.{number}/", 1) for number in range(tokens.AT_ONCE - tokens.PER_ADDRESS)]
    assert all(others)
    assert living.issue("198.51.100.1", 1) is None
    assert living.issue("192.0.2.1", 1) is not None, "in place of its oldest"
    assert living.issue("198.51.100.1", 0.5 + tokens.SECONDS) is not None, "the first ones have expired"
    assert living.spend(others[0] or b"", "192.0.2.0/", 0.5 + tokens.SECONDS) == "echoed"
    assert living.issue("198.51.100.1", 2 + tokens.SECONDS) is not None
    assert living.spend(others[0] or b"", "192.0.2.0/", 2 + tokens.SECONDS) == "unknown"


class Closing(asyncio.Protocol):
    """Closes while it is told to go on writing: the connection is lost twice. `fails`: what the end of it raises."""

    def __init__(self, fails: Exception | None) -> None:
        self.fails = fails
        self.times = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write more than there is room for."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(bytes(16 * 2**20))

    def resume_writing(self) -> None:
        """Close."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count, and fail."""
        self.times += 1
        if self.fails:
            raise self.fails


@pytest.mark.parametrize("fails", [None, AttributeError("of the server"), OSError("of the server")])
async def test_a_connection_that_asyncio_loses_twice_is_no_error(caplog: pytest.LogCaptureFixture, fails: Exception | None) -> None:
    """What goes wrong in the server itself is one, also where it looks alike."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lost.handle)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    _, protocol = await loop.connect_accepted_socket(lambda: Closing(fails), ours)
    with theirs, caplog.at_level(logging.ERROR, "asyncio"):
        async with asyncio.timeout(10):
            while await loop.sock_recv(theirs, 2**20):
                pass
    assert protocol.times == 1
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [*filter(None, [fails])]
