"""The engine `ndt7` over real websockets, against a stand-in for M-Lab: no test of ours may load theirs."""

import asyncio
import socket
import time
from typing import Any

import pytest

from services.runner.probes import load, ndt7
from shared.errors import ProbeError
from shared.events import Measurement
from tests import ports
from tests.standin.ndt7 import Mlab, mlab


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload for half a second: the spec has ten."""
    monkeypatch.setattr(ndt7, "UPLOAD_S", 0.5)
    monkeypatch.setattr(ndt7, "LONGEST_S", 3)


async def run(server: Mlab, /, **options: Any) -> Measurement:
    """Run the engine."""
    return await load("ndt7").run({**server.options, **options}, lambda *_, **__: None)


async def failure(server: Mlab, /, **options: Any) -> ProbeError:
    """Run the engine and return how it fails."""
    with pytest.raises(ProbeError) as caught:
        await run(server, **options)
    return caught.value


async def test_both_directions_are_measured() -> None:
    """The download as it came here, the upload as it came there; the latency is the server's MinRTT."""
    async with mlab(rate_bps=80e6) as server:
        result = await run(server)
    assert result.download_bps == pytest.approx(80e6, rel=0.15)
    assert result.upload_bps == pytest.approx(80e6, rel=0.15)
    assert result.download_bytes == pytest.approx(5e6, rel=0.25)
    assert result.upload_bytes is not None
    assert server.received / 2 < result.upload_bytes <= server.received
    assert result.latency_s == 0.012345
    assert result.details == {"machine": "mlab1", "retransmission": 0.25}
    assert result.packet_loss is None
    assert (result.server.id, result.server.name, result.server.country_code) == ("mlab1", "Berlin", "DE")
    assert server.paths == ["/v2/nearest/ndt/ndt7", "/ndt/v7/download", "/ndt/v7/upload"]
    assert [agent.split()[0] for agent in server.agents] == ["refresher"]
    assert min(server.sizes) == 2**13
    assert max(server.sizes) > 2**13


@pytest.mark.parametrize("direction", ["download", "upload"])
async def test_one_direction_is_enough(direction: str) -> None:
    """The other is absent; a server of one's own is asked directly."""
    other = "upload" if direction == "download" else "download"
    async with mlab() as server:
        result = await run(server, server=f"ws://127.0.0.1:{server.port}", **{other: False})
    assert getattr(result, f"{other}_bps") is getattr(result, f"{other}_bytes") is None
    assert getattr(result, f"{direction}_bps") == pytest.approx(80e6, rel=0.2)
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
        ({"seconds": 0, "silent": True}, "bad_answer"),
        ({"silent": True, "download": False}, "unconfirmed"),
    ],
)
async def test_failures_are_told_apart(settings: dict[str, Any], kind: str) -> None:
    """Too many tests, an address that is refused, answers without sense, transfers that break off, uploads that nobody confirms."""
    options = {name: settings[name] for name in ("download",) if name in settings}
    async with mlab(**{name: value for name, value in settings.items() if name not in options}) as server:
        error = await failure(server, **options)
    assert error.kind == kind, error.message


async def test_a_download_that_never_ends_is_ended() -> None:
    """After 15 s, by the spec; what came until then is the measurement."""
    async with mlab(seconds=60) as server:
        result = await run(server, upload=False)
    assert result.download_bps == pytest.approx(80e6, rel=0.15)


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


@pytest.mark.parametrize("direction", ["download", "upload"])
async def test_cancelled_it_leaves_nothing_behind(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a task nor a connection."""
    monkeypatch.setattr(ndt7, "UPLOAD_S", 60)
    other = "upload" if direction == "download" else "download"
    async with mlab(seconds=60) as server:
        before = asyncio.all_tasks()
        running = asyncio.create_task(run(server, **{other: False}))
        end = time.monotonic() + 5
        while f"/ndt/v7/{direction}" not in server.paths:
            assert time.monotonic() < end, "it never came to that"
            await asyncio.sleep(0.01)
        await asyncio.wait({running}, timeout=0.2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        ours = {task for task in asyncio.all_tasks() - before if "services" in repr(task.get_coro())}
        assert ours <= {running}
