"""The engine `ndt7` over real websockets, against a stand-in for M-Lab: no test of ours may load theirs."""

import asyncio
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from services.runner.probes import load, ndt7
from shared.errors import ProbeError
from shared.events import Measurement
from tests import ports
from tests.measuring import carried, memory_bytes, processes
from tests.standin.ndt7 import HOSTILE, Mlab, mlab, no_ndt7

PATIENCE_S = 3
"""Longer than a busy machine keeps the stand-in waiting for a processor."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load each direction for a second and a half: the spec has ten."""
    monkeypatch.setattr(ndt7, "DIRECTION_S", 1.5)


async def run(server: Mlab, /, **options: Any) -> Measurement:
    """Run the engine, and see that no process is left."""
    try:
        return await load("ndt7").run({**server.options, **options}, lambda *_, **__: None)
    finally:
        assert processes(ndt7.CHILD) == []


async def failure(server: Mlab, /, **options: Any) -> ProbeError:
    """Run the engine and return how it fails."""
    with pytest.raises(ProbeError) as caught:
        await run(server, **options)
    return caught.value


async def test_both_directions_are_measured() -> None:
    """Rates as the kernels count them, warm-up left out; M-Lab's own figures beside them; the latency is the server's MinRTT."""
    async with mlab(rate_bps=80e6) as server:
        result = await run(server)
    details = result.details
    for phase, line in (("download", server.down), ("upload", server.up)):
        rate = getattr(result, f"{phase}_bps")
        assert rate == carried(line, details[phase], server.rate_bps * 1.1)
        assert details[phase]["mlab_bps"] == pytest.approx(rate, rel=0.15)
        assert details[phase]["mlab_bps"] != rate
        assert details[phase]["streams"] == 1
        assert 12e6 < getattr(result, f"{phase}_bytes") < 25e6
        assert getattr(result, f"{phase}_spread") >= 0
    # what arrived at the far end, of which its program may not have read the last
    assert result.upload_bytes >= server.received
    assert result.latency_s == 0.012345
    assert (details["machine"], details["retransmission"]) == ("mlab1", 0.25)
    assert result.packet_loss is None
    # the stand-in's receive window, which is small, holds the upload back
    assert (result.limited_by, result.confidence) == ("host", "underestimates")
    assert (result.server.id, result.server.name, result.server.country_code) == ("mlab1", "Berlin", "DE")
    assert (result.engine_version, server.agents) == ("refresher 0.1.0", {"refresher/0.1.0"})
    assert server.paths == ["/v2/nearest/ndt/ndt7", "/ndt/v7/download", "/ndt/v7/upload"]
    assert min(server.sizes) == 2**13
    assert max(server.sizes) > 2**13


@pytest.mark.parametrize("direction", ["download", "upload"])
async def test_one_direction_is_enough(direction: str) -> None:
    """The other is absent; a server of one's own is asked directly."""
    other = "upload" if direction == "download" else "download"
    async with mlab() as server:
        result = await run(server, server=f"ws://127.0.0.1:{server.port}", **{other: False})
    assert getattr(result, f"{other}_bps") is getattr(result, f"{other}_bytes") is None
    assert getattr(result, f"{direction}_bps") == carried(
        server.down if direction == "download" else server.up, result.details[direction], server.rate_bps * 1.1
    )
    assert result.latency_s == 0.012345
    assert server.paths == [f"/ndt/v7/{direction}"]


async def test_the_next_machine_is_tried() -> None:
    """In their order, four at most."""
    async with mlab(machines=["down-1", "down-2", "down-3", "mlab4"]) as server:
        assert (await run(server, upload=False)).details["machine"] == "mlab4"
        server.machines.insert(0, "down-0")
        error = await failure(server)
    assert error.kind == "unreachable"
    assert [name in error.message for name in ("down-0", "down-1", "down-2", "down-3", "mlab4")] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"locate_status": 429}, "rate_limited"),
        ({"locate_status": 503}, "rate_limited"),
        ({"locate_status": 403}, "blocked"),
        ({"locate_status": 302}, "redirected"),
        ({"locate_status": 500}, "bad_answer"),
        ({"machines": []}, "bad_answer"),
        ({"status": 429}, "rate_limited"),
        ({"status": 403}, "blocked"),
        ({"status": 404}, "bad_answer"),
        ({"breaks": True}, "truncated"),
        ({"breaks": True, "download": False}, "truncated"),
        ({"seconds": 0.2}, "truncated"),
        ({"silent": True, "download": False}, "unconfirmed"),
    ],
)
async def test_failures_are_told_apart(settings: dict[str, Any], kind: str) -> None:
    """Too many tests, an address that is refused, answers without sense, transfers that break off, uploads that nobody confirms."""
    options = {name: settings[name] for name in ("download",) if name in settings}
    async with mlab(**{name: value for name, value in settings.items() if name not in options}) as server:
        error = await failure(server, **options)
    assert error.kind == kind, error.message


@pytest.mark.parametrize(("seconds", "ended_by"), [(60, "time"), (1.1, "end")])
async def test_a_download_lasts_as_long_as_the_specification_has_it(seconds: float, ended_by: str) -> None:
    """One that never ends is ended, one that the server ends early is measured as far as it went."""
    async with mlab(seconds=seconds) as server:
        result = await run(server, upload=False)
    assert result.download_bps == carried(server.down, result.details["download"], server.rate_bps * 1.1)
    assert (result.limited_by, result.confidence) == (None, "indicative")
    assert result.details["download"]["ended_by"] == ended_by
    assert result.details["download"]["mlab_bps"] == pytest.approx(result.download_bps, rel=0.15)


HOSTILE_KINDS = {
    "long-text": ("bad_answer", "no websocket's frame"),
    "fitting-text": ("bad_answer", "text of more than 64 kB"),
    "fragments": ("bad_answer", "text of more than 64 kB"),
    "deep-json": ("bad_answer", "that is no test"),
    "pings": ("bad_answer", "that is no test"),
    "pongs": ("bad_answer", "that is no test"),
    "tiny-frames": ("bad_answer", "that is no test"),
    "words": ("bad_answer", "are the download's data"),
    "huge-frame": ("bad_answer", "no websocket's frame"),
    "no-frames": ("bad_answer", "no websocket's frame"),
    "masked": ("bad_answer", "no websocket's frame"),
    "drip": ("bad_answer", "that is no measurement"),
    "still": ("timeout", "not one byte arrived"),
    "hangs-up": ("truncated", "broke the download off"),
}


@pytest.mark.parametrize(
    ("direction", "hostile"),
    [*(("download", hostile) for hostile in HOSTILE), *(("upload", hostile) for hostile in ("long-text", "masked", "still"))],
)
async def test_a_hostile_server_costs_no_more_than_its_time(direction: str, hostile: str) -> None:
    """Texts, frames and control frames that are too long, too many, wrong or missing: a failure that names it, and a small child."""
    kind, text = HOSTILE_KINDS[hostile]
    if (direction, hostile) == ("upload", "still"):
        kind, text = "unconfirmed", "tells of not one byte"
    other = "upload" if direction == "download" else "download"
    began, most = time.monotonic(), 0
    async with mlab(hostile=hostile) as server:
        failing = asyncio.create_task(failure(server, **{other: False, "timeout_s": 1 if hostile == "still" else PATIENCE_S}))
        while not failing.done():
            most = max(most, memory_bytes(ndt7.CHILD))
            await asyncio.wait({failing}, timeout=0.05)
        error = failing.result()
    assert (error.kind, text in error.message) == (kind, True), error.message
    assert "secret" not in error.message
    assert time.monotonic() - began < 20
    assert 10e6 < most < 150e6


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("html", "bad_answer"),
        ("redirect", "redirected"),
        ("garbage", "bad_answer"),
        ("endless-head", "bad_answer"),
        ("endless-page", "bad_answer"),
        ("no-answer", "timeout"),
        ("dripping-head", "timeout"),
        ("wrong-key", "bad_answer"),
    ],
)
async def test_a_server_that_speaks_no_ndt7_is_named(name: str, kind: str) -> None:
    """Pages, redirects, heads without end or sense, silence: each ends soon; no secret of an address is told."""
    async with no_ndt7(name) as address:
        error = await failure(Mlab(), server=address, timeout_s=PATIENCE_S)
        assert error.kind == kind, error.message
        assert "secret" not in error.message
        located = await failure(Mlab(), locate=address.replace("ws:", "http:"), timeout_s=PATIENCE_S)
    assert located.kind in {"bad_answer", "redirected", "timeout", "truncated"}, located.message


async def test_the_certificate_is_checked(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that nobody vouches for is refused; one that is trusted is measured."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with mlab(certificate=context) as server:
        own = f"wss://127.0.0.1:{server.port}"
        error = await failure(server, server=own)
        assert (error.kind, "is not trusted" in error.message) == ("bad_answer", True), error.message
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        result = await run(server, server=own)
    assert result.download_bps == carried(server.down, result.details["download"], server.rate_bps * 1.1)
    assert result.upload_bps == carried(
        server.up, result.details["upload"], server.rate_bps * 1.1, within=0.1
    )  # with what the encryption adds
    assert server.received > 0


async def test_the_address_to_measure_from_is_used() -> None:
    """For the locate service and for both directions; one that is not this machine's is named."""
    async with mlab() as server:
        await run(server, source_address="127.0.0.9")
        assert set(server.clients) == {"127.0.0.9"}
        error = await failure(server, source_address="192.0.2.1")
    assert (error.kind, "192.0.2.1 cannot be used" in error.message) == ("misconfigured", True)


async def test_nobody_there() -> None:
    """A locate service that does not listen is unreachable, one that never answers is a timeout; both in time."""
    server = Mlab()
    assert (await failure(server)).kind == "unreachable"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        port = silent.getsockname()[1]
        assert (await failure(server, locate=f"http://127.0.0.1:{port}/", timeout_s=0.5)).kind == "timeout"
        assert (await failure(server, server=f"ws://127.0.0.1:{port}", timeout_s=0.5)).kind == "timeout"
    assert (await failure(server, server=f"ws://127.0.0.1:{ports.take()}")).kind == "unreachable"


async def test_cancelled_it_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that measures is gone with the run."""
    monkeypatch.setattr(ndt7, "DIRECTION_S", 60)
    async with mlab(seconds=60) as server:
        running = asyncio.create_task(run(server))
        end = time.monotonic() + 5
        while "/ndt/v7/download" not in server.paths:
            assert time.monotonic() < end, "it never came to that"
            await asyncio.sleep(0.01)
        (child,) = processes(ndt7.CHILD)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not child.is_running()
