"""The engine `connectivity` against servers on loopback: a DNS server with faults to order, and TCP and HTTP servers."""

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from services.runner.probes import load
from shared.errors import ProbeError
from shared.events import Measurement
from tests import ports


class Resolver(asyncio.DatagramProtocol):
    """A DNS server that knows the names it is told; `silent`, it answers nothing, and `refusing`, it answers SERVFAIL."""

    def __init__(self) -> None:
        self.port = ports.take()
        self.known = {"here.example.": ("127.0.0.1", None)}
        self.asked: list[str] = []
        self.asked_from: set[str] = set()
        self.silent = self.refusing = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        question = dns.message.from_wire(data)
        self.asked_from.add(addr[0])
        (wanted,) = question.question
        self.asked.append(f"{wanted.name} {dns.rdatatype.to_text(wanted.rdtype)}")
        if self.silent:
            return
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        found = self.known.get(str(wanted.name))
        if self.refusing or found is None:
            answer.set_rcode(dns.rcode.SERVFAIL if self.refusing else dns.rcode.NXDOMAIN)
        elif address := found[wanted.rdtype == dns.rdatatype.AAAA]:
            answer.answer.append(dns.rrset.from_text(wanted.name, 60, "IN", wanted.rdtype, address))
        self._transport.sendto(answer.to_wire(), addr)

    @property
    def options(self) -> dict[str, Any]:
        """The engine's options that aim it here."""
        return {"resolver": f"127.0.0.1:{self.port}", "timeout_s": 2}


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    """Give a DNS server."""
    server = Resolver()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, ("127.0.0.1", server.port))
    yield server
    transport.close()


@contextlib.asynccontextmanager
async def serving(
    answer: bytes | None, context: ssl.SSLContext | None = None, heard: list[bytes] | None = None, peers: list[str] | None = None
) -> AsyncIterator[int]:
    """Give the port of a server that answers each request so; None answers nothing at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if peers is not None:
                peers.append(writer.get_extra_info("peername")[0])
            request = await reader.readuntil(b"\r\n\r\n")
            if heard is not None:
                heard.append(request)
            if answer is None:
                await reader.read()  # until the other end is tired of waiting
            writer.write(answer or b"")
            await writer.drain()
        writer.close()

    port = ports.take()
    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    async with server:
        yield port


NO_CONTENT = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"


async def run(resolver: Resolver, *targets: str, **options: Any) -> Measurement:
    """Run the engine."""
    return await load("connectivity").run({**resolver.options, "targets": list(targets), **options}, lambda *_, **__: None)


async def failure(resolver: Resolver, *targets: str, **options: Any) -> ProbeError:
    """Run the engine and return how it fails."""
    with pytest.raises(ProbeError) as caught:
        await run(resolver, *targets, **options)
    return caught.value


def by_target(result: Measurement) -> dict[str, dict[str, Any]]:
    """Return the details of each target."""
    return {each["target"]: each for each in result.details["targets"]}


async def test_each_step_of_each_target_is_timed(resolver: Resolver) -> None:
    """A name is resolved, a connection opened and a page asked for; the latency is that of connections, not of the slow page."""
    heard: list[bytes] = []
    async with serving(NO_CONTENT, heard=heard) as http, serving(None) as tcp:
        page, address = f"http://here.example:{http}/generate_204?x=1", f"tcp://127.0.0.1:{tcp}"
        result = await run(resolver, page, address)
    found = by_target(result)
    assert found[page] | {"dns_s": 0, "connect_s": 0, "http_s": 0} == {
        "target": page,
        "reachable": True,
        "address": "127.0.0.1",
        "dns_s": 0,
        "connect_s": 0,
        "http_s": 0,
        "status": 204,
    }
    assert found[address].keys() == {"target", "reachable", "address", "connect_s"}
    times = [found[page]["connect_s"], found[address]["connect_s"]]
    assert result.latency_s == pytest.approx(sum(times) / 2, abs=2e-6)
    assert min(times) > 0
    assert sorted(resolver.asked) == ["here.example. A", "here.example. AAAA"]
    assert heard[0].startswith(b"GET /generate_204?x=1 HTTP/1.1\r\nHost: here.example:%d\r\n" % http)
    assert result.packet_loss is None
    assert result.details["reachable"] == 2


async def test_one_target_down_is_said_and_no_failure(resolver: Resolver) -> None:
    """The line carries as long as anything answers; what does not is in the details, with the reason."""
    async with serving(NO_CONTENT) as up:
        down, there = f"tcp://127.0.0.1:{ports.take()}", f"http://127.0.0.1:{up}/"
        result = await run(resolver, down, there)
    assert by_target(result)[down] == {
        "target": down,
        "reachable": False,
        "address": "127.0.0.1",
        "problem": "unreachable",
        "reason": "127.0.0.1: Connection refused",
    }
    assert result.details["reachable"] == 1


async def test_all_targets_down_is_the_line(resolver: Resolver) -> None:
    """Each target and its reason is in the message: a name that does not resolve says nothing when no address answers."""
    resolver.silent = True
    target = f"tcp://127.0.0.1:{ports.take()}"
    error = await failure(resolver, target, "http://here.example/", timeout_s=0.3)
    assert error.kind == "line_down"
    assert f"{target}: 127.0.0.1: Connection refused" in error.message
    assert "http://here.example/: the name did not resolve within 0.3 s" in error.message


@pytest.mark.parametrize(
    ("trouble", "said"),
    [("silent", "did not resolve within 0.5 s"), ("refusing", "SERVFAIL"), (None, "there is no name gone.example (NXDOMAIN)")],
)
async def test_names_that_do_not_resolve_while_addresses_answer_are_told_apart(resolver: Resolver, trouble: str | None, said: str) -> None:
    """A resolver that is silent, broken or knows nothing is `dns_down`, not the line."""
    if trouble:
        setattr(resolver, trouble, True)
    async with serving(None) as port:
        error = await failure(resolver, f"tcp://127.0.0.1:{port}", "http://gone.example/", timeout_s=0.5)
    assert error.kind == "dns_down"
    assert said in error.message
    assert f"tcp://127.0.0.1:{port} answers" in error.message


async def test_one_name_that_resolves_is_enough(resolver: Resolver) -> None:
    """A single name that is gone is a target down: DNS works."""
    async with serving(NO_CONTENT) as port:
        result = await run(resolver, f"tcp://127.0.0.1:{port}", f"http://here.example:{port}/", "http://gone.example/")
    assert by_target(result)["http://gone.example/"]["problem"] == "dns"


async def test_the_other_version_of_ip_is_tried(resolver: Resolver) -> None:
    """A name with two addresses of which one does not answer is reachable by the other."""
    resolver.known["both.example."] = ("127.0.0.2", "::1")
    port = ports.take()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "::1", port)
    async with server:
        result = await run(resolver, f"tcp://both.example:{port}")
    assert result.details["targets"][0]["address"] == "::1"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n", "redirected", "HTTP 302: sent elsewhere"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "bad_answer", "HTTP 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_answer", "does not speak HTTP"),
        (b"HTTP/1.1 2xx\r\n\r\n", "bad_answer", "does not speak HTTP"),
        (b"x" * 100_000, "bad_answer", "does not speak HTTP"),
        (b"", "bad_answer", "does not speak HTTP"),
        (None, "line_down", "did not answer within 0.3 s"),
    ],
)
async def test_a_page_that_is_not_what_it_should_be_is_no_success(resolver: Resolver, answer: bytes | None, kind: str, said: str) -> None:
    """A login page, a server error, no HTTP, an endless line and silence each fail in time, with their own reason."""
    async with serving(answer) as port:
        error = await failure(resolver, f"http://here.example:{port}/", timeout_s=0.3 if answer is None else 2)
    assert (error.kind, said in error.message) == (kind, True), error.message


async def test_another_page_than_the_empty_one_is_a_hot_spots(resolver: Resolver) -> None:
    """Addresses made for the purpose answer 204: a login page that comes in their place says 200, and so may any other address."""
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n<html>") as port:
        error = await failure(resolver, f"http://here.example:{port}/generate_204")
        assert (error.kind, "HTTP 200 in place of 204" in error.message) == ("redirected", True)
        assert (await run(resolver, f"http://here.example:{port}/other")).details["reachable"] == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate of here.example that signed itself, with its key."""
    made = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=here.example", "-addext", "subjectAltName=DNS:here.example", "-keyout", str(made), "-out", f"{made}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    made.write_text(made.read_text() + Path(f"{made}.crt").read_text())
    return made


async def test_https_is_timed_and_must_be_genuine(resolver: Resolver, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake has its own time; a certificate that nobody vouches for is a wrong answer, as a hot spot gives it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with serving(NO_CONTENT, context) as port:
        target = f"https://here.example:{port}/"
        error = await failure(resolver, target)
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        (found,) = (await run(resolver, target)).details["targets"]
    assert (error.kind, "TLS failed: CERTIFICATE_VERIFY_FAILED" in error.message) == ("bad_answer", True), error.message
    assert found["tls_s"] > 0
    assert found["status"] == 204


@pytest.mark.parametrize("step", ["name", "connection", "handshake", "page"])
async def test_cancelled_it_leaves_nothing_behind(resolver: Resolver, step: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it waits for, it ends at once: no socket, no task, no thread that goes on waiting."""
    caplog.set_level(logging.DEBUG, "asyncio")
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as stack:
            if step == "connection":  # a full queue: the next one is not answered
                for _ in range(2):
                    filler = stack.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(("127.0.0.1", port))
            resolver.silent = step == "name"
            scheme = {"connection": "tcp", "handshake": "https"}.get(step, "http")
            before, threads = asyncio.all_tasks(), threading.active_count()
            running = asyncio.create_task(run(resolver, f"{scheme}://here.example:{port}", timeout_s=30))
            await until(lambda: resolver.asked)
            await asyncio.wait({running}, timeout=0.2)
            assert not running.done()
            running.cancel()
            started = asyncio.get_running_loop().time()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert asyncio.get_running_loop().time() - started < 0.5
            assert asyncio.all_tasks() - before <= {running}
            assert threading.active_count() == threads
    await asyncio.sleep(0)  # one turn of the loop, for what was called soon
    gc.collect()  # a socket that was left open warns here
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("targets", []),
        ("targets", ["1.1.1.1"]),
        ("targets", ["tcp://1.1.1.1"]),
        ("targets", ["tcp://1.1.1.1:99999"]),
        ("targets", ["tcp://example.org:53/path"]),
        ("targets", ["ftp://example.org/"]),
        ("targets", ["http://user@example.org/"]),
        ("targets", ["http://example.org/\r\nX: y"]),
        ("targets", ["http://a..example/"]),
        ("targets", [f"http://{'a' * 64}.example/"]),
        ("resolver", "dns.example"),
        ("resolver", "127.0.0.1:dns"),
        ("resolver", "127.0.0.1:70000"),
    ],
)
def test_a_wrong_option_is_refused(option: str, value: object) -> None:
    """Before any run, with the option's name."""
    found = load("connectivity").wrong({option: value})
    assert found
    assert all(field.startswith(option) for field, _ in found)


async def test_the_source_address_must_be_this_machines(resolver: Resolver) -> None:
    """One of this machine is measured from, names included; another's is the person's mistake, not the line's."""
    peers: list[str] = []
    async with serving(NO_CONTENT, peers=peers) as port:
        result = await run(resolver, f"http://here.example:{port}/", source_address="127.0.0.3")
        assert result.details["reachable"] == 1
        assert resolver.asked == ["here.example. A"], "an IPv6 address cannot be reached from an IPv4 one"
        error = await failure(resolver, f"http://here.example:{port}/", source_address="192.0.2.99")
    assert {*peers} == resolver.asked_from == {"127.0.0.3"}
    assert error.kind == "misconfigured"
