"""The engine `ookla`. Its program is no free software and cannot be had for tests.

In its place runs a script that prints documents of the form that Ookla's program is documented to print: what is proven here is what
becomes of them, not that Ookla's program prints them. That another `speedtest` is noticed is proven with the real speedtest-cli.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.runner.probes import load
from shared.errors import ProbeError
from shared.events import Measurement

VERSION = "Speedtest by Ookla 1.2.0.84 (ea6b6773cf) Linux/x86_64-linux-musl 6.1.0 x86_64"
LOADED = {"iqm": 45.5, "low": 12.0, "high": 180.25, "jitter": 6.5}
RESULT: dict[str, Any] = {
    "type": "result",
    "timestamp": "2026-10-03T07:24:33Z",
    "ping": {"jitter": 0.5, "latency": 12.25, "low": 11.9, "high": 13.1},
    "download": {"bandwidth": 11_750_000, "bytes": 150_000_000, "elapsed": 12_800, "latency": LOADED},
    "upload": {"bandwidth": 4_750_000, "bytes": 48_000_000, "elapsed": 10_100, "latency": LOADED},
    "packetLoss": 0.5,
    "isp": "Example Telecom",
    "interface": {"internalIp": "192.168.1.2", "name": "eth0", "macAddr": "02:00:00:00:00:01", "isVpn": False, "externalIp": "192.0.2.17"},
    "server": {
        "id": 4711,
        "host": "speedtest.example.net",
        "port": 8080,
        "name": "Example Net",
        "location": "Frankfurt",
        "country": "Germany",
        "ip": "198.51.100.7",
    },
    "result": {"id": "0b6ef0d4", "url": "https://www.speedtest.net/result/c/0b6ef0d4", "persisted": True},
}

Program = Callable[..., None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Give the way to put a `speedtest` on PATH that prints these texts, and writes its arguments down."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(output: str = "", errors: str = "", code: int = 0, version: str = VERSION, then: str = "") -> None:
        for name, text in (("output", output), ("errors", errors), ("version", version)):
            (tmp_path / name).write_text(text)
        script = f'cd {tmp_path}\nif [ "$1" = --version ]; then cat version; exit; fi\necho "$@" > arguments\n{then}\n'
        (tmp_path / "speedtest").write_text(f"#!/bin/sh\n{script}cat output; cat errors >&2; exit {code}\n")
        (tmp_path / "speedtest").chmod(0o755)

    return put


async def run(**options: Any) -> Measurement:
    """Run the engine."""
    return await load("ookla").run(options, lambda *_, **__: None)


async def failure(**options: Any) -> ProbeError:
    """Run the engine and return how it fails."""
    with pytest.raises(ProbeError) as caught:
        await run(**options)
    return caught.value


async def test_a_result_is_read_in_its_own_units(program: Program) -> None:
    """Bytes per second, milliseconds and per cent become bits per second, seconds and a share; latency under load is kept."""
    program(json.dumps({"type": "log", "level": "info", "message": "403 nothing of note"}) + "\n" + json.dumps(RESULT))
    result = await run()
    assert (result.download_bps, result.upload_bps) == (94e6, 38e6)
    assert (result.download_bytes, result.upload_bytes) == (150_000_000, 48_000_000)
    assert (result.latency_s, result.jitter_s, result.packet_loss) == (0.01225, 0.0005, 0.005)
    assert result.server.model_dump(exclude_none=True) == {
        "id": "4711",
        "name": "Frankfurt",
        "sponsor": "Example Net",
        "host": "speedtest.example.net:8080",
        "country": "Germany",
    }
    assert result.client.model_dump(exclude_none=True) == {"isp": "Example Telecom", "address": "192.0.2.17"}
    assert result.engine_version == VERSION
    assert result.details["download"] == {
        "seconds": 12.8,
        "loaded_latency_s": {"iqm": 0.0455, "low": 0.012, "high": 0.18025, "jitter": 0.0065},
    }
    assert result.details["result_url"] == RESULT["result"]["url"]


async def test_what_is_not_told_is_absent(program: Program) -> None:
    """Loss is often missing, and never 0 for that."""
    program(json.dumps({name: value for name, value in RESULT.items() if name != "packetLoss"}))
    assert (await run()).packet_loss is None


async def test_only_what_the_user_set_is_passed_on(program: Program, tmp_path: Path) -> None:
    """Above all no licence is accepted in anybody's name."""
    program(json.dumps(RESULT))
    await run()
    assert (tmp_path / "arguments").read_text() == "--format=json\n"
    await run(accept_license=True, accept_gdpr=True, server_id=4711, interface="eth0")
    assert (tmp_path / "arguments").read_text() == "--format=json --accept-license --accept-gdpr --server-id=4711 --interface=eth0\n"
    assert load("ookla").wrong({"interface": "-x"})


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        (
            "You may only use this Speedtest software for personal use.\nDo you accept the license? [type YES to accept]: ",
            "accept_license=true",
        ),
        ("Ookla collects certain data (GDPR). To accept, use --accept-gdpr\n", "accept_gdpr=true"),
    ],
)
async def test_a_licence_that_is_not_accepted_is_for_the_user(program: Program, asked: str, option: str) -> None:
    """The failure says which option to set."""
    program(asked, code=1)
    error = await failure()
    assert (error.kind, option in error.message) == ("misconfigured", True), error.message
    assert error.engine_version == VERSION


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Too many requests received", "rate_limited"),
        ("Limit reached: Speedtest CLI", "rate_limited"),
        ("Configuration - 403 Forbidden", "blocked"),
        ("Cannot open socket: Network is unreachable", "line_down"),
        ("Configuration - Couldn't resolve host name (HostNotFoundException)", "unreachable"),
        ("Configuration - Could not retrieve or read configuration (ConfigurationError)", "unreachable"),
        ("Server Selection - Failed to find a working test server. (NoServers)", "no_server"),
        ("Timeout occurred in connect", "timeout"),
        ("Something that nobody has seen", "bad_answer"),
    ],
)
async def test_its_errors_are_told_apart(program: Program, message: str, kind: str) -> None:
    """By the lines of its log, wherever it writes them."""
    program(errors=json.dumps({"type": "log", "timestamp": "2026-10-03T07:24:33Z", "message": message, "level": "error"}), code=2)
    error = await failure()
    assert (error.kind, error.message) == (kind, f"Ookla: {message}")
    program(json.dumps({"error": message}), code=2)
    error = await failure()
    assert (error.kind, error.message) == (kind, f"Ookla: {message}")


@pytest.mark.parametrize(
    "output",
    [
        "",
        "null",
        "{}",
        json.dumps({**RESULT, "download": {**RESULT["download"], "bandwidth": 0}}),
        json.dumps({**RESULT, "ping": {"latency": -1}}),
        json.dumps({**RESULT, "packetLoss": 101}),
        json.dumps({"download": None}),
    ],
)
async def test_what_makes_no_sense_is_no_measurement(program: Program, output: str) -> None:
    """Nothing, a rate of 0, a latency of -1."""
    program(output)
    assert (await failure()).kind == "bad_answer"


async def test_it_is_ended_in_time(program: Program) -> None:
    """With whatever it started."""
    program(then="sleep 60 & wait")
    assert (await failure(deadline_s=1)).kind == "timeout"


async def test_the_other_speedtest_is_noticed(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python program of the same name, which is installed with Refresher, is not taken for Ookla's; nor is any other."""
    program(version="speedtest 5.0\n")
    error = await failure()
    assert (error.kind, "not Ookla's" in error.message) == ("misconfigured", True)
    (tmp_path / "speedtest").write_text(f'#!/bin/sh\nexec {Path(sys.executable).parent / "speedtest-cli"} "$@"\n')
    error = await failure()
    assert (error.kind, "Python program speedtest-cli 2.1.3" in error.message) == ("misconfigured", True), error.message
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    error = await failure()
    assert (error.kind, "speedtest.net/apps/cli" in error.message) == ("misconfigured", True)
