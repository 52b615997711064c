"""The engine `ookla`: speedtest.net through Ookla's own command line, which the user installed; it is never bundled.

Its licence is for personal, non-commercial use: it is accepted only where the user set the options that say so. Its `bandwidth` is
in bytes per second, its times in milliseconds, its loss in per cent.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from services.runner import program
from services.runner.probes import Options, Report
from shared.errors import ProbeError, reasons
from shared.events import Client, Measurement, Positive, Server

INSTALL = "install Ookla's Speedtest CLI from speedtest.net/apps/cli (its licence is for personal, non-commercial use)"
KINDS = {
    "too many requests": "rate_limited",
    "limit reached": "rate_limited",
    "forbidden": "blocked",
    "network is unreachable": "line_down",
    "networkunreachable": "line_down",
    "no route to host": "line_down",
    "no servers": "no_server",
    "noservers": "no_server",
    "working test server": "no_server",
    "no such device": "misconfigured",
    "timeout": "timeout",
    "timed out": "timeout",
    "resolve host": "unreachable",
    "hostnotfound": "unreachable",
    "cannot open socket": "unreachable",
    "connection refused": "unreachable",
    "could not retrieve": "unreachable",
}
"""What its errors hold, in small letters and in the order of looking."""

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Said = Annotated[str, StringConstraints(max_length=1_000)]


class OoklaOptions(Options):
    """What the engine `ookla` takes."""

    accept_license: bool = False
    """You accept Ookla's licence, which allows personal, non-commercial use alone."""
    accept_gdpr: bool = False
    """You accept that Ookla processes your data, where the GDPR applies."""
    server_id: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """This server; by default the one that Ookla chooses."""
    interface: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,14}$")] | None = None
    """The network interface to measure from: chooses the line where there are two."""
    deadline_s: Annotated[float, Field(ge=1, le=600)] = 90
    """How long the whole run may take."""


class _Latency(BaseModel):
    """Round trips while the line is loaded, in milliseconds."""

    iqm: Milliseconds
    low: Milliseconds | None = None
    high: Milliseconds | None = None
    jitter: Milliseconds | None = None


class _Transfer(BaseModel):
    bandwidth: Positive
    bytes: Annotated[int, Field(ge=0)]
    elapsed: Milliseconds
    latency: _Latency | None = None


class _Ping(BaseModel):
    latency: Positive
    jitter: Milliseconds | None = None
    low: Milliseconds | None = None
    high: Milliseconds | None = None


class _Server(BaseModel):
    id: int
    host: Said | None = None
    port: int | None = None
    name: Said | None = None
    location: Said | None = None
    country: Said | None = None


class _Interface(BaseModel):
    name: Said | None = None
    isVpn: bool | None = None  # noqa: N815 - as it is in the document
    externalIp: Said | None = None  # noqa: N815


class _Shared(BaseModel):
    url: Said | None = None


class Document(BaseModel):
    """The result as `speedtest --format=json` writes it."""

    ping: _Ping
    download: _Transfer
    upload: _Transfer
    packetLoss: Annotated[float, Field(ge=0, le=100)] | None = None  # noqa: N815
    isp: Said | None = None
    interface: _Interface = _Interface()
    server: _Server
    result: _Shared = _Shared()


async def measure(options: OoklaOptions, report: Report) -> Measurement:
    """Run one test.

    Raises: ProbeError of the kinds `rate_limited`, `blocked`, `line_down`, `unreachable`, `timeout`, `no_server`, `bad_answer`,
    `misconfigured`.
    """
    report("connecting")
    version = told_version(await program.run("speedtest", "--version", within_s=10, install=INSTALL))
    report("measuring")
    command = ["--format=json"] + ["--accept-license"] * options.accept_license + ["--accept-gdpr"] * options.accept_gdpr
    command += [f"--server-id={options.server_id}"] * bool(options.server_id) + [f"--interface={options.interface}"] * bool(
        options.interface
    )
    try:
        ended = await program.run("speedtest", *command, within_s=options.deadline_s, install=INSTALL)
        return _measurement(result_of(ended), version)
    except ProbeError as error:
        raise ProbeError(error.kind, error.message, log=error.log, engine_version=version) from None


def told_version(ended: program.Ended) -> str:
    """Return the version of Ookla's program.

    Raises: ProbeError `misconfigured` when the `speedtest` that was found is another one.
    """
    first = (ended.output.strip().splitlines() or ["nothing"])[0][:200]
    if "speedtest-cli" in ended.output:
        raise ProbeError("misconfigured", f"the speedtest on PATH is the Python program {first}, which is no work of Ookla's: {INSTALL}")
    if "Ookla" not in ended.output:
        raise ProbeError("misconfigured", f"the speedtest on PATH is not Ookla's, it calls itself {first!r}: {INSTALL}")
    return first


def result_of(ended: program.Ended) -> Document:
    """Return the result among the lines that the program wrote.

    Raises: ProbeError for the error that it tells of, a licence that is not accepted, and what is no result of its.
    """
    said, log = f"{ended.output}\n{ended.errors}", ended.errors[-8_000:]
    errors = []
    for line in said.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and document.get("type") == "log":
            errors += [str(document.get("message"))[:500]] if document.get("level") == "error" else []
        elif isinstance(document, dict) and isinstance(document.get("error"), str):
            errors.append(document["error"][:500])
        elif isinstance(document, dict) and "download" in document:
            try:
                return Document.model_validate(document)
            except ValidationError as error:
                raise ProbeError("bad_answer", f"Ookla's result makes no sense: {reasons(error)}", log=log) from None
    if errors:
        text = "; ".join(errors).lower()
        raise ProbeError(next((kind for part, kind in KINDS.items() if part in text), "bad_answer"), f"Ookla: {'; '.join(errors)}", log=log)
    for word, option in (("gdpr", "accept_gdpr"), ("license", "accept_license")):
        if word in said.lower():
            message = f"Ookla's program asks whether you accept its terms: if you do, set the option {option}=true"
            raise ProbeError("misconfigured", message, log=said[-8_000:])
    tail = said.strip()[-300:] or "nothing"
    raise ProbeError("bad_answer", f"Ookla's program wrote no result (exit code {ended.code}); it said: {tail}", log=log)


def _measurement(document: Document, version: str) -> Measurement:
    server, ping = document.server, document.ping
    return Measurement(
        download_bps=document.download.bandwidth * 8,
        upload_bps=document.upload.bandwidth * 8,
        latency_s=ping.latency / 1000,
        jitter_s=None if ping.jitter is None else ping.jitter / 1000,
        packet_loss=None if document.packetLoss is None else document.packetLoss / 100,
        download_bytes=document.download.bytes,
        upload_bytes=document.upload.bytes,
        server=Server(
            id=str(server.id),
            name=server.location,
            sponsor=server.name,
            host=f"{server.host}:{server.port}" if server.host and server.port else server.host,
            country=server.country,
        ),
        client=Client(isp=document.isp, address=document.interface.externalIp),
        engine_version=version,
        details={
            "result_url": document.result.url,
            "interface": document.interface.name,
            "is_vpn": document.interface.isVpn,
            "download": _details(document.download),
            "upload": _details(document.upload),
        },
    )


def _details(transfer: _Transfer) -> dict[str, Any]:
    loaded = transfer.latency.model_dump(exclude_none=True) if transfer.latency else {}
    return {"seconds": transfer.elapsed / 1000, "loaded_latency_s": {name: value / 1000 for name, value in loaded.items()}}
