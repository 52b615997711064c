"""The engine `speedtest`: speedtest.net through the library speedtest-cli, which runs in a process of its own.

The library starts threads that nobody can cancel, waits without end and takes error pages for measurements. The child
(`services.runner.speedtest_child`) keeps account of what its requests really came to; this side
(`services.runner.child`) gives the child its order, reads its messages within limits, and ends it on time, when
cancelled, and always at the end.
"""

import math
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.runner.child import Child
from services.runner.probes import Options, Report
from shared.events import Bytes, Client, Confidence, Measurement, Positive, Server

CHILD = "services.runner.speedtest_child"
ServerIds = Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], Field(max_length=1_000)]


class Answer(BaseModel):
    """The measurement; what the servers said of themselves is as they said it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["answer"]
    latency_s: Positive
    download_bps: Positive | None = None
    download_bytes: Bytes | None = None
    upload_bps: Positive | None = None
    upload_bytes: Bytes | None = None
    hung: bool = False
    """Whether requests hung at the end of a phase: its rate is that of the time before."""
    server: dict[str, str]
    client: dict[str, str]
    details: dict[str, Any]


class SpeedtestOptions(Options):
    """What the engine `speedtest` takes."""

    server_ids: ServerIds = ()
    """Only these servers of speedtest.net; of several, the one of the five nearest with the lowest latency. Empty: any."""
    exclude_ids: ServerIds = ()
    """Never these servers."""
    source_address: IPv4Address | IPv6Address | None = None
    """The address of this machine to measure from: chooses the line where there are two."""
    timeout_s: Annotated[float, Field(ge=0.5, le=60)] = 10
    """How long one connection may be silent."""
    deadline_s: Annotated[float, Field(ge=10, le=600)] = 60
    """How long the whole run may take."""
    max_bytes: Annotated[int, Field(ge=1, lt=2**63)] = 4_000_000_000
    """Both directions together; a run that needs more fails as `byte_limit`."""
    https: bool = True
    """Try https first for the configuration and the list of servers, then http. Transfers use the address that the list gives."""
    download: bool = True
    upload: bool = True


async def measure(options: SpeedtestOptions, report: Report) -> Measurement:
    """Run one speed test against speedtest.net.

    Raises: ProbeError of the kinds `unreachable`, `line_down`, `timeout`, `rate_limited`, `blocked`, `bad_answer`, `redirected`,
    `truncated`, `unconfirmed` (uploads), `no_server`, `byte_limit`, `misconfigured`, `crashed`.
    """
    child = Child(CHILD, "speedtest", Answer, report)
    engine_version = f"speedtest-cli {version('speedtest-cli')}"
    answer = await child.measure(options.model_dump(mode="json", exclude={"deadline_s"}), options.deadline_s, engine_version)
    return _measurement(answer, engine_version, child.log())


def _measurement(answer: Answer, engine_version: str, log: str) -> Measurement:
    server, client = answer.server, answer.client
    distance_km = _number(server.get("d"), 0, 20_100)
    return Measurement(
        download_bps=answer.download_bps,
        upload_bps=answer.upload_bps,
        latency_s=answer.latency_s,
        download_bytes=answer.download_bytes,
        upload_bytes=answer.upload_bytes,
        server=Server(
            id=_text(server.get("id")),
            name=_text(server.get("name")),
            sponsor=_text(server.get("sponsor")),
            url=_text(server.get("url")),
            host=_text(server.get("host")),
            country=_text(server.get("country")),
            country_code=_text(server.get("cc")),
            latitude=_number(server.get("lat"), -90, 90),
            longitude=_number(server.get("lon"), -180, 180),
            distance_m=None if distance_km is None else distance_km * 1000,
        ),
        client=Client(
            isp=_text(client.get("isp")),
            address=_text(client.get("ip")),
            country_code=_text(client.get("country")),
            latitude=_number(client.get("lat"), -90, 90),
            longitude=_number(client.get("lon"), -180, 180),
        ),
        engine_version=engine_version,
        confidence=confidence(answer.download_bps, answer.upload_bps, answer.latency_s, hung=answer.hung),
        details=answer.details,
        log=log,
    )


def confidence(download_bps: float | None, upload_bps: float | None, latency_s: float, *, hung: bool = False) -> Confidence:
    """Say how far the library is to be believed: measured against known lines, it reads low on fast and on distant ones.

    Within 1 % at 20 Mbit/s, 6 % low at 500 Mbit/s or at 100 Mbit/s and 40 ms, 14 to 28 % low at 1 Gbit/s.
    """
    fastest = max(download_bps or 0, upload_bps or 0)
    if fastest > 500e6:
        return "underestimates"
    return "indicative" if hung or fastest > 100e6 or latency_s > 0.015 else "reliable"


def _text(value: str | None) -> str | None:
    """Return what a server said, None when it said nothing."""
    return (value or "").replace("\x00", "").strip()[:1_000] or None


def _number(value: str | None, low: float, high: float) -> float | None:
    """Return the number that a server wrote, None when it is none or lies outside."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and low <= number <= high else None
