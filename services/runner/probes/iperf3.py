"""The engine `iperf3`: the user's own iperf3 against a server of theirs, a direction at a time.

The rate is what the receiving end counted, over the whole test (`sum_received` of its JSON). Over UDP it is the rate that was asked
for, less what was lost, and says nothing about the line: there loss and jitter are measured instead.
"""

import asyncio
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from services.runner import program
from services.runner.probes import Options, Report
from shared.errors import ProbeError, reasons
from shared.events import Measurement, Server

INSTALL = "install iperf3 (Debian's package iperf3, Homebrew's iperf3), here and at the far end, where `iperf3 --server` must run"
GOODBYE_S = 10
"""For the two ends to exchange their results."""

Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:_%-]{0,252}$")]

KINDS = {
    "busy running a test": "busy",
    "authorization failed": "blocked",
    "larger than server limit": "blocked",
    "server has terminated": "truncated",
    "control socket has closed": "truncated",
    "Cannot assign requested address": "misconfigured",
    "Network is unreachable": "line_down",
    "timed out": "timeout",
    "unable to connect": "unreachable",
    "unable to send": "unreachable",
    "unable to receive": "unreachable",
}
"""What iperf3's `error` holds, in the order of looking. (src/iperf_error.c of iperf 3)"""


class Iperf3Options(Options):
    """What the engine `iperf3` takes."""

    host: Host
    """Where a server of yours runs: a name or an address."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 5_201
    seconds: Annotated[int, Field(ge=1, le=60)] = 10
    """How long each direction is measured."""
    streams: Annotated[int, Field(ge=1, le=64)] = 4
    """How many connections at once."""
    download: bool = True
    upload: bool = True
    udp_bps: Annotated[float, Field(ge=1_000, le=1e11)] | None = None
    """Measure loss and jitter with UDP at this rate in bit/s, all streams together, instead of the rate with TCP."""
    source_address: IPv4Address | IPv6Address | None = None
    """The address of this machine to measure from: chooses the line where there are two."""
    timeout_s: Annotated[float, Field(ge=0.5, le=60)] = 5
    """How long the server may take to accept a connection."""

    @model_validator(mode="after")
    def _measures(self) -> Self:
        if not (self.download or self.upload):
            raise ValueError("neither download nor upload is wanted: there is nothing to measure")
        return self


class _Sum(BaseModel):
    """All streams of a direction."""

    bytes: Annotated[int, Field(ge=0)]
    bits_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    retransmits: Annotated[int, Field(ge=0)] | None = None
    jitter_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    lost_packets: Annotated[int, Field(ge=0)] | None = None
    packets: Annotated[int, Field(ge=0)] | None = None


class _Load(BaseModel):
    host_total: float
    remote_total: float


class _End(BaseModel):
    sum: _Sum | None = None
    """Of UDP: what was sent, and what of it was lost."""
    sum_sent: _Sum | None = None
    sum_received: _Sum | None = None
    cpu_utilization_percent: _Load | None = None
    sender_tcp_congestion: str | None = None

    @model_validator(mode="after")
    def _tells_what_came(self) -> Self:
        """Work out what iperf3 before 3.11 does not tell of UDP (github.com/esnet/iperf, #1174)."""
        sent = self.sum
        if self.sum_received is None and sent and sent.packets and sent.lost_packets is not None:
            came = 1 - min(1, sent.lost_packets / sent.packets)
            told = {"bytes": round(sent.bytes * came), "bits_per_second": sent.bits_per_second * came}
            self.sum_received = sent.model_copy(update=told)
        return self


class _Start(BaseModel):
    version: Annotated[str, StringConstraints(max_length=200)] | None = None


class Document(BaseModel):
    """What `iperf3 --json` writes."""

    start: _Start = _Start()
    end: _End = _End()
    error: str | None = None


async def measure(options: Iperf3Options, report: Report) -> Measurement:
    """Measure each direction that is wanted, the download first.

    Raises: ProbeError of the kinds `unreachable`, `line_down`, `busy`, `blocked`, `truncated`, `timeout`, `bad_answer`,
    `misconfigured`.
    """
    ends: dict[str, _End] = {}
    version = None
    for name in ("download", "upload"):
        if not getattr(options, name):
            continue
        report(name)
        if ends:
            await asyncio.sleep(0.2)  # the server takes the next test only once it is done with the last
        document = await _run(options, reverse=name == "download")
        ends[name], version = document.end, document.start.version
    received = {name: end.sum_received for name, end in ends.items() if end.sum_received}
    rates = {} if options.udp_bps else {f"{name}_bps": total.bits_per_second for name, total in received.items()}
    return Measurement(
        **rates,
        **{f"{name}_bytes": total.bytes for name, total in received.items()},
        **(_udp(received) if options.udp_bps else {}),
        server=Server(host=f"{options.host}:{options.port}"),
        engine_version=version,
        details={
            "protocol": "udp" if options.udp_bps else "tcp",
            "streams": options.streams,
            **{name: _details(end) for name, end in ends.items()},
        },
    )


def _udp(received: dict[str, _Sum]) -> dict[str, float]:
    """Return the loss of all directions together, and the larger jitter."""
    lost, sent = (sum(getattr(total, name) or 0 for total in received.values()) for name in ("lost_packets", "packets"))
    jitters = [total.jitter_ms / 1000 for total in received.values() if total.jitter_ms is not None]
    return ({"packet_loss": lost / sent} if sent else {}) | ({"jitter_s": max(jitters)} if jitters else {})


def _details(end: _End) -> dict[str, Any]:
    """Return what else a direction tells."""
    known: dict[str, Any] = {"congestion": end.sender_tcp_congestion}
    if end.sum_sent:
        known["retransmits"] = end.sum_sent.retransmits
    if end.sum_received and end.sum_received.packets is not None:
        known |= {"packets": end.sum_received.packets, "lost_packets": end.sum_received.lost_packets}
        known |= {"received_bps": end.sum_received.bits_per_second}
    if load := end.cpu_utilization_percent:
        known |= {"cpu_percent": load.host_total, "server_cpu_percent": load.remote_total}
    return {name: value for name, value in known.items() if value is not None}


async def _run(options: Iperf3Options, *, reverse: bool) -> Document:
    """Run iperf3 once."""
    command = [f"--client={options.host}", f"--port={options.port}", f"--time={options.seconds}", f"--parallel={options.streams}"]
    command += ["--json", "--interval=0", f"--connect-timeout={round(options.timeout_s * 1000)}"]
    if options.udp_bps:  # iperf3 gives the rate to each stream
        command += ["--udp", f"--bitrate={max(1, round(options.udp_bps / options.streams))}"]
    command += ["--reverse"] * reverse + [f"--bind={options.source_address}"] * bool(options.source_address)
    within_s = options.timeout_s + options.seconds + GOODBYE_S
    return parsed(await program.run("iperf3", *command, within_s=within_s, install=INSTALL), f"{options.host}:{options.port}")


def parsed(ended: program.Ended, server: str) -> Document:
    """Return what iperf3 said.

    Raises: ProbeError for the error that it tells of, and for what is no result of its.
    """
    said = (ended.errors.strip() or ended.output.strip())[-300:] or f"nothing, and its exit code is {ended.code}"
    try:
        document = Document.model_validate_json(ended.output)
    except ValidationError as error:
        raise ProbeError(
            "bad_answer", f"iperf3 wrote no result ({reasons(error)[:200]}); it said: {said}", log=ended.errors[-8_000:]
        ) from None
    version = document.start.version
    if document.error is not None:
        kind = next((kind for text, kind in KINDS.items() if text in document.error), "bad_answer")
        raise ProbeError(kind, f"iperf3 and {server}: {document.error}", log=ended.errors[-8_000:], engine_version=version)
    received = document.end.sum_received
    if received is None or not received.bits_per_second > 0:
        raise ProbeError("bad_answer", f"iperf3 and {server}: not one byte was received", engine_version=version)
    return document
