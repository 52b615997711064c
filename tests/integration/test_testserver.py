"""The test server, as its clients meet it: every path, every limit, and clients that mean it harm."""

import contextlib
import itertools
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from services.testserver.settings import TestserverSettings
from services.testserver.tokens import DATAGRAMS, SECONDS
from shared.healthcheck import PORTS
from shared.settings import MISCONFIGURED
from tests import debian, ports
from tests.commands import Refresher
from tests.http import plain
from tests.testserver import TestServer, answer, head, until_closed

Start = Callable[..., TestServer]

MIB = 1_048_576
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
PATHS = [before + name + after for before in ("/", "/backend/") for after in ("", ".php") for name in ("garbage", "empty", "getIP")]

NO_HTTP = [
    os.urandom(1000).replace(b"\n", b"") + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
    b"GET /getIP HTTP/1.1\r\n\r\n",
    b"GET /getIP\r\n\r\n",
    head("GET", "/getIP\x00"),
    head("GET", "/getIP", "Bad Name: x"),
    head("GET", "/getIP", "Host: twice"),
    head("GET", "//[/getIP"),
    head("GET", "/getIP?" + "&".join("a=b" for _ in range(100))),
    head("POST", "/empty", "Content-Length: -1"),
    head("POST", "/empty", "Content-Length: 1", "Content-Length: 2"),
    head("POST", "/empty", "Content-Length: " + "9" * 30),
    head("POST", "/empty", "Transfer-Encoding: gzip"),
    head("POST", "/empty", "Transfer-Encoding: chunked") + b"zz\r\n",
    head("POST", "/empty", "Transfer-Encoding: chunked") + b"-1\r\n",
    head("POST", "/empty", "Transfer-Encoding: chunked") + b"ffffffffffffffffffffffffffff\r\n",
    head("POST", "/empty", "Transfer-Encoding: chunked") + b"1\r\nxyz\r\n",
]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a test server; at the end each has stopped in order, and nothing went wrong inside."""
    started: list[TestServer] = []

    def start(**settings: str) -> TestServer:
        started.append(TestServer(tmp_path, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()
        log = server.log.read_text()
        assert '"level": "error"' not in log, log
        assert "Traceback" not in log, log


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate for the loopback addresses, with its key in the same file."""
    openssl = debian.program("openssl", "usr/bin/openssl")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test", "-days", "2"]
    parts = [tmp_path / "key.pem", tmp_path / "certificate.pem"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,IP:::1", "-keyout", parts[0], "-out", parts[1]]
    subprocess.run(command, capture_output=True, check=True)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    return both


def test_every_path_of_librespeed_answers(start: Start) -> None:
    """By each name that LibreSpeed's clients use: with `.php`, and under `/backend/`."""
    server = start()
    with httpx.Client(base_url=server.url) as http:
        for path in PATHS:
            got = http.get(path, params={"ckSize": 1, "r": 0.5})
            assert got.status_code == 200, path
            assert "no-store" in got.headers["cache-control"]
            assert "no-transform" in got.headers["cache-control"]
            if "garbage" in path:
                assert len(got.content) == MIB
                assert len(zlib.compress(got.content)) > MIB
                assert got.headers["content-type"] == "application/octet-stream"
            elif "empty" in path:
                assert got.content == b""
                assert http.post(path, content=bytes(10_000)).content == b""
            else:
                assert got.json() == {"processedString": "127.0.0.1 - localhost IPv4 access", "rawIspInfo": ""}
        assert len(http.get("/garbage").content) == 4 * MIB
        assert http.head("/garbage?ckSize=99999999").headers["content-length"] == str(1024 * MIB)


def test_the_lists_name_this_server(start: Start) -> None:
    """LibreSpeed's clients get a list of one server, by the name that they asked; our own get a token for datagrams."""
    server = start()
    (listed,) = plain.get(f"{server.url}/.well-known/librespeed").json()
    for_pages = plain.get(f"{server.url}/.well-known/librespeed?cors=true")
    assert (for_pages.json(), for_pages.headers["access-control-allow-origin"]) == ([listed], "*")
    assert listed["server"] == f"{server.url}/"
    assert {name: listed[name] for name in ("dlURL", "ulURL", "pingURL", "getIpURL")} == {
        "dlURL": "garbage",
        "ulURL": "empty",
        "pingURL": "empty",
        "getIpURL": "getIP",
    }
    about = plain.get(f"{server.url}/.well-known/refresher").json()
    token = about["udp"].pop("token")
    assert len(bytes.fromhex(token)) == 16
    told = {"port": server.udp_port, "seconds": SECONDS, "datagrams": DATAGRAMS}
    assert about == {"name": "refresher testserver", "version": version("refresher"), "udp": told}
    refused = plain.get(f"{server.url}/.well-known/librespeed", headers={"Host": 'x"><script>'})
    assert refused.status_code == 400
    assert "script" not in refused.text
    without = start(udp="false")
    assert set(plain.get(f"{without.url}/.well-known/refresher").json()) == {"name", "version"}


def test_pages_of_another_origin_may_use_it(start: Start) -> None:
    """As with LibreSpeed's own backend: where the client says `cors`, and not otherwise; also when it is refused."""
    server = start(transfers="1")
    with httpx.Client(base_url=server.url) as http:
        for path in PATHS:
            assert http.get(path, params={"cors": "true", "ckSize": 1}).headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-origin" not in http.get(path, params={"ckSize": 1}).headers
        asked = http.options("/empty?cors=true", headers={"Origin": "http://there", "Access-Control-Request-Method": "POST"})
        assert asked.status_code == 204
        assert "content-length" not in asked.headers
        assert "Content-Encoding" in asked.headers["access-control-allow-headers"]
        assert "POST" in asked.headers["access-control-allow-methods"]
        with http.stream("GET", "/garbage?ckSize=1024"):
            refused = http.post("/empty?cors=true", content=b"x")
        assert refused.status_code == 429
        assert refused.headers["access-control-allow-origin"] == "*"


def test_the_page_of_librespeed_gets_what_it_asks_for(start: Start) -> None:
    """The requests of its web worker, as it makes them from another origin: with preflights, bodiless posts, and ends in the middle."""
    server = start()
    origin = {"Origin": "http://page.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-encoding"}
    with httpx.Client(base_url=f"{server.url}/backend/", headers=origin) as http:
        told = http.get("getIP.php?cors=true&isp=true&distance=km&r=0.1")
        assert told.json()["processedString"].startswith("127.0.0.1")
        with http.stream("GET", "garbage.php?cors=true&r=0.2&ckSize=100") as download:
            assert download.headers["access-control-allow-origin"] == "*"
            assert next(download.iter_raw())
        assert http.post("empty.php").status_code == 200
        asked = http.options("empty.php?cors=true&r=0.3", headers=preflight)
        assert "content-encoding" in asked.headers["access-control-allow-headers"].lower()
        sent = http.post("empty.php?cors=true&r=0.3", headers={"Content-Encoding": "identity"}, content=bytes(20 * MIB))
        assert (sent.status_code, sent.content, sent.headers["access-control-allow-origin"]) == (200, b"", "*")
        for number in range(10):
            ping = http.get(f"empty.php?cors=true&r={number}")
            assert (ping.status_code, ping.content, ping.headers["access-control-allow-origin"]) == (200, b"", "*")
    server.wait_for_metric('refresher_testserver_transfers_total{direction="download",outcome="left"}', 1)


def test_what_there_is_not_is_refused_with_its_reason(start: Start) -> None:
    """The status says which kind, the line of text what to do."""
    server = start()
    refused = {
        ("GET", "/elsewhere"): 404,
        ("GET", "/backend"): 404,
        ("DELETE", "/empty"): 405,
        ("POST", "/garbage"): 405,
        ("POST", "/getIP"): 405,
        ("CONNECT", "here:443"): 404,
    }
    for (method, target), status in refused.items():
        got = server.say(head(method, target, "Connection: close"))
        assert got.startswith(f"HTTP/1.1 {status} ".encode()), (method, target, got)
    assert b"Allow: GET, HEAD, OPTIONS" in server.say(head("POST", "/getIP"))
    assert server.say(head("GET", "/getIP", "Content-Length: 3"), b"abc").startswith(b"HTTP/1.1 413 ")


def test_one_connection_takes_many_requests(start: Start) -> None:
    """Also when they come all at once, and behind bodies of either kind: each is answered, in its order."""
    server = start()
    chunked = head("POST", "/empty", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\n\r\n"
    known = head("POST", "/empty", "Content-Length: 5") + b"hello"
    getip = head("GET", "/getIP")
    with server.connect() as connection:
        for together in (
            getip * 200,
            known + getip,
            chunked + getip,
            known * 3,
            chunked * 3,
            known + head("GET", "/garbage?ckSize=1") + getip,
        ):
            connection.sendall(together)
            for line in [line for line in together.split(b"\r\n") if line.endswith(b"HTTP/1.1")]:
                status, _, body = answer(connection)
                assert status == 200
                assert len(body) == (MIB if b"garbage" in line else 0 if b"POST" in line else len(body) or -1)
        connection.sendall(head("GET", "/empty", "Connection: close"))
        assert answer(connection)[1]["connection"] == "close"
        assert connection.recv(1) == b""
    server.wait_for_metric('refresher_testserver_bytes_total{direction="upload"}', 5 + 8 + 3 * 5 + 3 * 8 + 5)


def test_pieces_may_come_as_they_like(start: Start) -> None:
    """A request whose every byte comes alone is the same request."""
    server = start()
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in (
            head("POST", "/empty", "Content-Length: 9") + b"known len",
            head("POST", "/empty", "Transfer-Encoding: chunked") + b"2\r\nab\r\n0\r\n\r\n",
        ):
            for byte in request:
                connection.sendall(bytes([byte]))
            assert answer(connection)[0] == 200
    server.wait_for_metric('refresher_testserver_bytes_total{direction="upload"}', 11)


def test_long_bodies_end_where_they_end(start: Start) -> None:
    """Requests sent at once behind one another: no byte of a long body is lost, doubled or taken for the next request's."""
    server = start()
    body = os.urandom(3 * MIB + 1)
    with server.connect(receive_buffer=65_536) as client:
        client.sendall(head("GET", "/garbage?ckSize=9") * 2 + head("GET", "/getIP"))
        for _ in range(2):
            status, _, garbage = answer(client)
            assert (status, len(garbage)) == (200, 9 * MIB)
            assert len(zlib.compress(garbage, 1)) > 9 * MIB
        assert json.loads(answer(client)[2])["processedString"] == "127.0.0.1 - localhost IPv4 access"
        for length in (len(body), MIB):
            client.sendall(head("POST", "/empty", f"Content-Length: {length}") + body[:length] + head("GET", "/getIP"))
            assert answer(client)[0] == 200
            assert json.loads(answer(client)[2])["rawIspInfo"] == ""
    server.wait_for_metric('refresher_testserver_bytes_total{direction="download"}', 18 * MIB)
    server.wait_for_metric('refresher_testserver_bytes_total{direction="upload"}', len(body) + MIB)


def test_a_client_that_waits_is_told_to_go_on_or_is_refused_before_it_sends(start: Start) -> None:
    """`Expect: 100-continue`: nobody sends in vain."""
    server = start(bytes="1000")
    with server.connect() as connection:
        connection.sendall(head("POST", "/empty", "Content-Length: 4", "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"body")
        assert answer(connection)[0] == 200
        connection.sendall(head("POST", "/empty", "Content-Length: 1001", "Expect: 100-continue"))
        assert answer(connection)[0] == 413
    with server.connect() as eager:
        eager.sendall(head("POST", "/empty", "Content-Length: 100000") + bytes(100_000))
        assert answer(eager)[0] == 413
        assert eager.recv(1) == b"", "closed, not reset, although it had sent what nobody wanted"


def test_a_client_of_http_1_0_gets_one_answer(start: Start) -> None:
    """It does not know of chunks, nor of connections that stay."""
    got = start().say(b"GET /getIP HTTP/1.0\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.endswith(b'"rawIspInfo": ""}')


def test_a_token_is_wanted_where_one_is_set(start: Start, tmp_path: Path) -> None:
    """As a header or in the query, on every path but those of health; LibreSpeed's list hands it on."""
    (tmp_path / "token").write_text("open sesame\n")
    server = start(token_file=str(tmp_path / "token"))
    with httpx.Client(base_url=server.url) as http:
        for path in (*PATHS, "/.well-known/librespeed", "/.well-known/refresher", "/metrics"):
            assert http.get(path, params={"ckSize": 1}).status_code == 401
            assert http.get(path, params={"ckSize": 1}, headers={"Authorization": "Bearer open sesame"}).status_code == 200
            assert http.get(path, params={"ckSize": 1, "token": "open sesame"}).status_code == 200
        for wrong in ({"Authorization": "Basic open sesame"}, {"Authorization": "Bearer open"}, {"Authorization": b"Bearer \xff"}):
            refused = http.get("/empty", headers=wrong)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert http.post("/empty", content=bytes(10 * MIB)).status_code == 401
        assert http.get("/health/live").status_code == http.get("/health/ready").status_code == 200
        (listed,) = http.get("/.well-known/librespeed", params={"token": "open sesame"}).json()
        assert http.get(listed["server"]).status_code == 404
        assert listed["server"].endswith("/?token=open+sesame")
    assert "sesame" not in server.log.read_text()


def test_a_transfer_has_so_many_bytes(start: Start) -> None:
    """A download that would be longer says so by its length and is the last; an upload is refused before, or when it is too long."""
    server = start(bytes=str(MIB + 1))
    with httpx.Client(base_url=server.url) as http:
        got = http.get("/garbage?ckSize=2")
        assert len(got.content) == MIB + 1
        assert got.headers["connection"] == "close"
        assert len(http.get("/garbage?ckSize=1").content) == MIB
        assert http.post("/empty", content=bytes(MIB + 1)).status_code == 200
        assert http.post("/empty", content=bytes(MIB + 2)).status_code == 413
        assert http.post("/empty", content=(bytes(1000) for _ in range(2_000))).status_code == 413
    for outcome in ('direction="download",outcome="bytes"', 'direction="upload",outcome="bytes"'):
        server.wait_for_metric(f"refresher_testserver_transfers_total{{{outcome}}}", 1)


def test_a_transfer_takes_so_many_seconds(start: Start) -> None:
    """A download ends short of its length; an upload ends with a status, however slowly it drips."""
    server = start(seconds="0.5", idle_s="30")
    with server.connect(receive_buffer=4_096) as slow:
        slow.sendall(head("GET", "/garbage?ckSize=1024"))
        began, got = time.monotonic(), 0
        while piece := slow.recv(65_536):
            got += len(piece)
            time.sleep(0.001)
    assert 0.4 < time.monotonic() - began < 10
    assert got < 1024 * MIB
    for body in ("Content-Length: 100000", "Content-Length: 100000000", "Transfer-Encoding: chunked"):
        with server.connect() as dripping:
            dripping.sendall(head("POST", "/empty", body))
            with contextlib.suppress(ConnectionError):
                for _ in range(40):
                    dripping.sendall(b"1\r\nx\r\n" if "chunked" in body else b"x")
                    dripping.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        dripping.recv(1, socket.MSG_PEEK)
                        break
            dripping.settimeout(20)
            status, _, told = answer(dripping)
        assert status == 408
        assert b"took too long" in told


def test_an_address_has_so_many_transfers_at_once(start: Start) -> None:
    """One more is refused with 429; when one has ended, there is room; another address has its own. Pings are no transfers."""
    server = start(host="127.0.0.1", transfers="2")
    with contextlib.ExitStack() as open_now:
        for _ in range(2):
            each = open_now.enter_context(server.connect(receive_buffer=4_096))
            each.sendall(head("GET", "/garbage?ckSize=1024"))
            each.recv(1)
        refused = plain.get(f"{server.url}/garbage")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert plain.post(f"{server.url}/empty", content=bytes(50 * MIB)).status_code == 429
        assert plain.get(f"{server.url}/empty").status_code == 200
        assert plain.post(f"{server.url}/empty").status_code == 200
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other) as http:
            assert http.get(f"{server.url}/garbage?ckSize=1").status_code == 200
        server.wait_for_metric('refresher_testserver_transfers_in_flight{direction="download"}', 2)
    server.wait_for_metric('refresher_testserver_transfers_in_flight{direction="download"}', 0)
    assert plain.get(f"{server.url}/garbage?ckSize=1").status_code == 200


def test_so_many_connections_may_be_open(start: Start) -> None:
    """One more is told so and closed; the others are served, and when one has gone there is room."""
    server = start(connections="3")
    with contextlib.ExitStack() as open_now:
        first, *_ = (open_now.enter_context(server.connect()) for _ in range(3))
        first.sendall(head("GET", "/empty"))
        assert answer(first)[0] == 200
        assert server.say(head("GET", "/empty")).startswith(b"HTTP/1.1 503 ")
        first.sendall(head("GET", "/empty"))
        assert answer(first)[0] == 200
    server.wait_for_metric("refresher_testserver_connections", 1)


def test_a_head_has_so_many_bytes(start: Start) -> None:
    """Whether it is complete, goes on and on, or is one long line."""
    server = start(head_bytes="1000")
    assert server.say(head("GET", "/getIP", f"X: {'x' * 700}", "Connection: close")).startswith(b"HTTP/1.1 200 ")
    for request in (
        head("GET", "/getIP", f"X: {'x' * 1000}"),
        head("GET", "/getIP", *(f"X{number}: x" for number in range(150))),
        b"GET /getIP HTTP/1.1\r\n" + b"X: x\r\n" * 1_000,
        b"GET /" + b"x" * 100_000,
        head("POST", "/empty", "Transfer-Encoding: chunked") + b"1;" + b"x" * 10_000,
    ):
        assert server.say(request).startswith(b"HTTP/1.1 431 "), request[:80]


def test_who_stands_still_is_let_go(start: Start) -> None:
    """Slow heads and stopped uploads get 408; who says nothing is closed, who reads nothing is cut; one that is slow but moves is not."""
    server = start(idle_s="1")
    with contextlib.ExitStack() as opened:
        silent, slow_head, stopped, unread = (opened.enter_context(server.connect(receive_buffer=4_096)) for _ in range(4))
        slow_head.sendall(b"GET /getIP HTTP/1.1\r\n")
        stopped.sendall(head("POST", "/empty", "Content-Length: 1000") + b"x")
        unread.sendall(head("GET", "/garbage?ckSize=1024"))
        moving = opened.enter_context(server.connect())
        moving.sendall(head("POST", "/empty", "Content-Length: 10"))
        for number in range(10):
            moving.sendall(b"x")
            with contextlib.suppress(ConnectionError):
                slow_head.sendall(f"X{number}: x\r\n".encode())
            time.sleep(0.3)
        assert answer(moving)[0] == 200
        assert answer(slow_head)[0] == 408
        assert answer(stopped)[0] == 408
        assert silent.recv(1) == b""
        assert len(until_closed(unread)) < 64 * MIB
    server.wait_for_metric('refresher_testserver_transfers_total{direction="download",outcome="idle"}', 1)
    server.wait_for_metric("refresher_testserver_connections", 1)


def test_what_is_no_http_is_refused(start: Start) -> None:
    """With a status of the kind 4xx or 501 and a reason, and the connection is closed."""
    server = start()
    for request in NO_HTTP:
        got = server.say(request)
        assert got[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5"), (request, got)
        assert b"Connection: close" in got
    server.wait_for_metric('refresher_testserver_refused_total{reason="malformed"}', len(NO_HTTP))


def test_both_a_length_and_chunks_is_not_two_readings(start: Start) -> None:
    """Where the two disagree, the rest could pass for another's request (smuggling): the chunks count, nothing is left over."""
    got = start().say(head("POST", "/empty", "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + head("GET", "/nothing"))
    assert got.count(b"HTTP/1.1 ") <= 2
    assert b"404" in got or got.startswith(b"HTTP/1.1 400")


def test_hostile_clients_cost_little_memory(start: Start) -> None:
    """Thousands of connections, unread downloads and answers, endless bodies and heads at once: under 64 MiB more, and it serves on."""
    server = start(connections="400", transfers="400", idle_s="3", seconds="3")
    process = psutil.Process(server.process.pid)
    plain.get(f"{server.url}/metrics")
    before, most = process.memory_info().rss, 0
    endless = {
        head("GET", "/garbage?ckSize=99999999999"): b"",
        head("POST", "/empty", "Transfer-Encoding: chunked"): b"ffff\r\n" + bytes(0xFFFF) + b"\r\n",
        head("POST", "/empty", "Content-Length: 9999999999"): bytes(100_000),
        b"GET /getIP HTTP/1.1\r\n": b"X: x\r\n" * 10_000,
        head("GET", "/metrics"): head("GET", "/metrics") * 100,
        b"": bytes(100_000),
    }
    with contextlib.ExitStack() as opened:
        clients = []
        for number, (request, more) in zip(range(2_000), itertools.cycle(endless.items()), strict=False):
            client = opened.enter_context(server.connect(receive_buffer=4_096))
            client.setblocking(False)
            with contextlib.suppress(OSError):
                client.send(request)
            clients.append((client, more))
            if number % 50 == 0:
                most = max(most, process.memory_info().rss)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            for client, more in clients:
                with contextlib.suppress(OSError):
                    client.send(more)
            most = max(most, process.memory_info().rss)
        assert most - before < 64 * MIB, f"{(most - before) / MIB:.0f} MiB"
    server.wait_for_metric("refresher_testserver_connections", 1, 30)
    assert len(plain.get(f"{server.url}/garbage?ckSize=8").content) == 8 * MIB


def test_clients_that_vanish_leave_nothing_behind(start: Start) -> None:
    """Reset in the middle of either direction, a hundred times: each transfer has ended, and the log has no error."""
    server = start()
    for request in (head("GET", "/garbage?ckSize=100"), head("POST", "/empty", "Content-Length: 99999999", "Expect: 100-continue")) * 50:
        with server.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.sendall(request)
            assert client.recv(MIB)
    for direction in ("download", "upload"):
        server.wait_for_metric(f'refresher_testserver_transfers_total{{direction="{direction}",outcome="left"}}', 50)
        server.wait_for_metric(f'refresher_testserver_transfers_in_flight{{direction="{direction}"}}', 0)


class Datagrams:
    """A UDP client of a test server, with a token of its own."""

    def __init__(self, server: TestServer, address: str = "127.0.0.1") -> None:
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(transport=transport) as http:
            udp = http.get(f"{server.url}/.well-known/refresher").json()["udp"]
        self.token = bytes.fromhex(udp["token"])
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.socket.connect(("127.0.0.1", udp["port"]))
        self.socket.settimeout(5)

    def echo(self, datagram: bytes) -> bytes:
        """Send one and return what comes back."""
        self.socket.send(datagram)
        return self.socket.recv(2_000)


@pytest.fixture
def datagrams() -> Iterator[Callable[..., Datagrams]]:
    """Give a function that makes a client; all are closed."""
    with contextlib.ExitStack() as opened:

        def make(server: TestServer, address: str = "127.0.0.1") -> Datagrams:
            made = Datagrams(server, address)
            opened.enter_context(made.socket)
            return made

        yield make


def test_datagrams_of_a_token_come_back_unchanged(start: Start, datagrams: Callable[..., Datagrams]) -> None:
    """From the shortest to the longest; anything else is dropped in silence, and counted by its fate."""
    server = start()
    client, other = datagrams(server), datagrams(server, "127.0.0.2")
    dropped = {
        "malformed": [b"", client.token, client.token + b"123", client.token + bytes(1_457)],
        "unknown": [bytes(20), os.urandom(400), other.token + b"0001"],
    }
    for datagram in itertools.chain(*dropped.values()):
        client.socket.send(datagram)
    for length in (20, 21, 400, 1_472):
        datagram = (client.token + os.urandom(length))[:length]
        assert client.echo(datagram) == datagram, "and nothing of what was dropped came before it"
    assert other.echo(other.token + b"0001") == other.token + b"0001"
    for fate, number in {"malformed": 4, "unknown": 3, "echoed": 5}.items():
        server.wait_for_metric(f'refresher_testserver_datagrams_total{{fate="{fate}"}}', number)


def test_a_token_is_good_for_so_many_datagrams(start: Start, datagrams: Callable[..., Datagrams]) -> None:
    """All of them come back, none lost; one more does not, and a new token starts anew."""
    server = start()
    client = datagrams(server)
    for number in range(DATAGRAMS):
        datagram = client.token + number.to_bytes(4, "big")
        assert client.echo(datagram) == datagram
    client.socket.send(client.token + bytes(4))
    server.wait_for_metric('refresher_testserver_datagrams_total{fate="spent"}', 1)
    again = datagrams(server)
    assert again.echo(again.token + bytes(4)) == again.token + bytes(4)
    client.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)


def test_it_speaks_tls_and_ipv6(start: Start, certificate: Path) -> None:
    """On both kinds of address at once, both directions, with datagrams; the health check of the image finds it; refusals are read."""
    server = start(host="127.0.0.1,::1", scheme="https", certificate_file=str(certificate))
    context = ssl.create_default_context(cafile=certificate)
    for url in (server.url, f"https://[::1]:{server.port}"):
        with httpx.Client(base_url=url, verify=context) as http:
            assert len(http.get("/garbage?ckSize=20").content) == 20 * MIB
            assert http.post("/empty", content=bytes(20 * MIB)).status_code == 200
            assert http.post("/empty", content=(bytes(70_000) for _ in range(20))).status_code == 200
            assert http.get("/elsewhere").status_code == 404
            assert "localhost IPv" in http.get("/getIP").json()["processedString"]
            (listed,) = http.get("/.well-known/librespeed").json()
            assert listed["server"] == f"{url}/"
            udp = http.get("/.well-known/refresher").json()["udp"]
        family, host = (socket.AF_INET6, "::1") if "::1" in url else (socket.AF_INET, "127.0.0.1")
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((host, udp["port"]))
            client.send(bytes.fromhex(udp["token"]) + b"0001")
            assert client.recv(100) == bytes.fromhex(udp["token"]) + b"0001"
    everywhere = start(host="0.0.0.0,::")
    assert all(plain.get(f"http://{host}:{everywhere.port}/empty").status_code == 200 for host in ("127.0.0.1", "[::1]"))
    assert server.say(head("GET", "/empty")) == b"", "plain HTTP is closed"
    assert _healthcheck(server) == 0


def test_who_never_ends_the_handshake_is_let_go(start: Start, certificate: Path) -> None:
    """A client that connects for TLS and says nothing holds its place as long as any that stands still."""
    server = start(scheme="https", certificate_file=str(certificate), idle_s="0.5")
    with server.connect() as silent:
        assert silent.recv(1) == b""


def _healthcheck(server: TestServer) -> int:
    environment = {
        **os.environ,
        **server.environment,
        **{f"REFRESHER_{name}_PORT": "9" for name in ("API", "SCHEDULER", "RUNNER", "RECORDER")},
    }
    return subprocess.run([sys.executable, "-m", "shared.healthcheck"], env=environment, stderr=subprocess.DEVNULL, check=False).returncode


def test_it_says_how_it_is(start: Start) -> None:
    """Health, metrics by direction and reason, and one line per test, whatever number of requests the test is made of."""
    server = start()
    assert _healthcheck(server) == 0
    assert plain.get(f"{server.url}/health/live").json() == {"status": "up", "service": "testserver", "version": version("refresher")}
    with httpx.Client(base_url=server.url) as http:
        for _ in range(3):
            http.get("/garbage?ckSize=1")
            http.post("/empty", content=bytes(1_000))
        http.get("/elsewhere")
    server.wait_for_metric('refresher_testserver_bytes_total{direction="download"}', 3 * MIB)
    server.wait_for_metric('refresher_testserver_bytes_total{direction="upload"}', 3_000)
    server.wait_for_metric('refresher_testserver_refused_total{reason="not_found"}', 1)
    ended = server.wait_for("test ended")
    assert ended["client"] == "127.0.0.1"
    server.stop()
    (down, up) = sorted(server.lines("test ended"), key=lambda line: line["direction"])
    assert (down["direction"], down["bytes"], down["transfers"], down["streams"]) == ("download", 3 * MIB, {"complete": 3}, 1)
    assert (up["direction"], up["bytes"], up["transfers"]) == ("upload", 3_000, {"complete": 3})
    assert 0 < down["seconds"] < 3


def test_it_stops_in_order(start: Start) -> None:
    """It takes no new connections and closes idle ones, lets an upload end, cuts what goes on for too long, and exits with 0."""
    server = start()
    with server.connect() as idle, server.connect() as uploading, server.connect(receive_buffer=4_096) as unread:
        unread.sendall(head("GET", "/garbage?ckSize=1024"))
        unread.recv(1)
        uploading.sendall(head("POST", "/empty", "Content-Length: 2") + b"x")
        server.wait_for_metric('refresher_testserver_transfers_in_flight{direction="upload"}', 1)
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        uploading.sendall(b"y")
        status, headers, _ = answer(uploading)
        assert (status, headers["connection"]) == (200, "close")
        assert server.process.wait(20) == 0
        assert len(until_closed(unread)) < 64 * MIB
    assert {tuple(line["transfers"].items()) for line in server.lines("test ended")} == {(("complete", 1),), (("stopping", 1),)}


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    """Whoever does not want to wait for others' transfers."""
    server = start()
    with server.connect(receive_buffer=4_096) as unread:
        unread.sendall(head("GET", "/garbage?ckSize=1024"))
        unread.recv(1)
        server.process.send_signal(signal.SIGINT)
        end = time.monotonic() + 10
        while server.process.poll() is None:
            with contextlib.suppress(ConnectionError):
                server.connect().close()
                continue
            server.process.send_signal(signal.SIGINT)
            assert time.monotonic() < end
            time.sleep(0.05)
    assert server.process.returncode == 1


def test_what_cannot_be_is_said_at_the_start(tmp_path: Path, listening_port: int) -> None:
    """A port that is taken, an address that is elsewhere, a file that is no certificate, a wrong setting: one sentence, no traceback."""
    refresher = Refresher()
    (tmp_path / "empty").write_text("\n")
    free = ["--port", str(ports.take()), "--udp-port", str(ports.take())]
    for arguments, told in (
        (["--port", str(listening_port)], f"cannot listen on 127.0.0.1, TCP port {listening_port}: Address already in use"),
        ([*free, "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        ([*free, "--host", "no.such.invalid"], "cannot listen on no.such.invalid"),
        ([*free, "--cert", str(tmp_path / "empty")], f"the certificate {tmp_path / 'empty'} and its key cannot be used"),
        ([*free, "--key", str(tmp_path / "empty")], "there is a key but no certificate"),
        ([*free, "--token-file", str(tmp_path / "empty")], f"the token file {tmp_path / 'empty'} is empty"),
    ):
        failed = refresher("testserver", *arguments, code=1)
        assert failed.stderr.startswith(f"refresher: {told}"), failed.stderr
    wrong = Refresher(REFRESHER_TESTSERVER_IDLE_S="never")("testserver", code=MISCONFIGURED)
    assert wrong.stderr.startswith("refresher testserver: REFRESHER_TESTSERVER_IDLE_S: ")
    assert refresher("testserver", "--max-bytes", "0", code=2).stderr.startswith("refresher: ")


def test_the_command_takes_every_setting_as_an_option(tmp_path: Path) -> None:
    """What is given goes before the environment, and is what the server does."""
    (tmp_path / "token").write_text("sesame")
    port = ports.take()
    refresher = Refresher(REFRESHER_TESTSERVER_PORT="1", REFRESHER_TESTSERVER_BYTES="5")
    options = {"port": port, "host": "127.0.0.1", "max-bytes": 10, "max-seconds": 5, "max-transfers": 3, "max-connections": 3}
    options |= {"max-head-bytes": 300, "idle": 3, "token-file": tmp_path / "token"}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with refresher.running("testserver", "--no-udp", *arguments) as process:
        assert process.stderr
        assert "listening" in process.stderr.readline()
        url = f"http://127.0.0.1:{port}"
        assert plain.post(f"{url}/empty?token=sesame", content=bytes(10)).status_code == 200
        assert plain.post(f"{url}/empty?token=sesame", content=bytes(11)).status_code == 413
        assert plain.get(f"{url}/empty").status_code == 401
        assert plain.get(f"{url}/empty", params={"x": "x" * 300}).status_code == 431
        assert "udp" not in plain.get(f"{url}/.well-known/refresher?token=sesame").json()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_command_line_client_of_librespeed_measures(start: Start, tmp_path: Path, certificate: Path, scheme: str) -> None:
    """The real one, with the list that this server hands out, its token included: what it counts is what the server counts."""
    client = debian.program("librespeed-cli", "usr/bin/librespeed-cli", since="trixie")
    (tmp_path / "token").write_text("sesame")
    secure = {"scheme": "https", "certificate_file": str(certificate)} if scheme == "https" else {}
    server = start(token_file=str(tmp_path / "token"), **secure)
    command = [client, "--server-json", f"{server.url}/.well-known/librespeed?token=sesame", "--json", "--duration", "2", "--no-icmp"]
    command += ["--ca-cert", str(certificate)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (result,) = json.loads(done.stdout)
    server.stop()
    counted = {line["direction"]: line for line in server.lines("test ended")}
    assert counted["download"]["streams"] == counted["upload"]["streams"] == 3
    assert counted["download"]["bytes"] == pytest.approx(result["bytes_received"], rel=0.05)
    assert counted["upload"]["bytes"] == pytest.approx(result["bytes_sent"], rel=0.05)
    assert result["download"] > 100
    assert result["upload"] > 100
    assert 0 <= result["ping"] < 100  # it counts whole milliseconds


def test_it_is_deployed_as_closed_as_the_others() -> None:
    """The container has no more rights than a runner's, is published on loopback unless told otherwise, and its variables are settings."""
    deploy = Path(__file__).parents[2] / "deploy"
    read = {name: yaml.safe_load((deploy / f"compose.{name}.yml").read_text())["services"] for name in ("testserver", "runner")}
    ours, runner = read["testserver"]["testserver"], read["runner"]["runner"]
    for name in ("init", "read_only", "tmpfs", "cap_drop", "security_opt", "restart", "logging", "image", "build"):
        assert ours[name] == runner[name]
    assert all(each.startswith("${REFRESHER_TESTSERVER_BIND:-127.0.0.1}:") for each in ours["ports"])
    assert {int(each.rpartition(":")[2].removesuffix("/udp")) for each in ours["ports"]} == {8477, 8478}
    known = {f"REFRESHER_{name.upper()}" for name in TestserverSettings.model_fields}
    assert set(ours["environment"]) <= known
    assert f"{PORTS['testserver']}" == f"{TestserverSettings.model_fields['testserver_port'].default}"
