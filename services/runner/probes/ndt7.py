"""The engine `ndt7`: M-Lab's NDT7 over a websocket, against the machine that M-Lab's locate service names.

The download is what this end counted, the upload what the server says that it received; the latency is the smallest round trip that
the server's TCP saw (MinRTT). One stream each way. M-Lab publishes the results, with the address of this line. (NDT7 spec v0.11)
"""

import asyncio
import os
import ssl
import time
from collections.abc import Sequence
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Self

import httpx
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from services.runner.probes import Options, Report
from shared.errors import ProbeError, reasons
from shared.events import Measurement, Server

LOCATE = "https://locate.measurementlab.net/v2/nearest/ndt/ndt7"
PROTOCOL = Subprotocol("net.measurementlab.ndt.v7")
UPLOAD_S = 10.0
LONGEST_S = 15.0
"""A server closes after ten seconds, by the spec after 13 to 15 at the latest."""
MACHINES = 4
SMALLEST_MESSAGE, LARGEST_MESSAGE = 2**13, 2**20
STATUS_KINDS = {429: "rate_limited", 503: "rate_limited", 401: "blocked", 403: "blocked"}

Url = Annotated[str, StringConstraints(max_length=500, pattern=r"^https?://[^\s/]+")]


class Ndt7Options(Options):
    """What the engine `ndt7` takes."""

    server: Annotated[str, StringConstraints(max_length=300, pattern=r"^wss?://[^\s/]+$")] | None = None
    """An ndt-server of your own, such as `wss://ndt.example:443`, in place of one of M-Lab's."""
    locate: Url = LOCATE
    """The locate service that names the servers."""
    download: bool = True
    upload: bool = True
    source_address: IPv4Address | IPv6Address | None = None
    """The address of this machine to measure from: chooses the line where there are two."""
    timeout_s: Annotated[float, Field(ge=0.5, le=60)] = 10
    """How long a connection may take to be made."""

    @model_validator(mode="after")
    def _measures(self) -> Self:
        if not (self.download or self.upload):
            raise ValueError("neither download nor upload is wanted: there is nothing to measure")
        return self


class _Place(BaseModel):
    city: str | None = None
    country: str | None = None


class _Machine(BaseModel):
    machine: str
    location: _Place = _Place()
    urls: dict[str, str]

    def url(self, direction: str) -> str:
        for scheme in ("wss", "ws"):
            if found := self.urls.get(f"{scheme}:///ndt/v7/{direction}"):
                return found
        raise ProbeError("bad_answer", f"the locate service names no address of {self.machine} for a {direction}")


class _Located(BaseModel):
    results: Annotated[list[_Machine], Field(min_length=1)]


class _App(BaseModel):
    ElapsedTime: Annotated[int, Field(gt=0)]
    NumBytes: Annotated[int, Field(ge=0)]


class _Tcp(BaseModel):
    ElapsedTime: Annotated[int, Field(gt=0)] | None = None
    MinRTT: Annotated[int, Field(gt=0)] | None = None
    BytesReceived: Annotated[int, Field(ge=0)] | None = None
    BytesSent: Annotated[int, Field(ge=0)] | None = None
    BytesRetrans: Annotated[int, Field(ge=0)] | None = None


class _Told(BaseModel):
    """What the server says, a few times a second; times in microseconds."""

    AppInfo: _App | None = None
    TCPInfo: _Tcp | None = None


class _NotServed(ProbeError):
    """A machine that does not take this client: the next one may."""


async def measure(options: Ndt7Options, report: Report) -> Measurement:
    """Measure each direction that is wanted, at the first of at most four machines that serves this client.

    Raises: ProbeError of the kinds `rate_limited`, `blocked`, `line_down`, `unreachable`, `timeout`, `redirected`, `truncated`,
    `bad_answer`, `misconfigured`.
    """
    report("connecting")
    machines = [_own(options.server)] if options.server else (await _located(options))[:MACHINES]
    refusals: list[_NotServed] = []
    for machine in machines:
        try:
            return await _measured(machine, options, report)
        except _NotServed as error:
            refusals.append(error)
    raise ProbeError(refusals[-1].kind, "; ".join(error.message for error in refusals), engine_version=_version())


def _version() -> str:
    return f"refresher {version('refresher')}"


def _own(server: str) -> _Machine:
    urls = {f"{server.partition(':')[0]}:///ndt/v7/{direction}": f"{server}/ndt/v7/{direction}" for direction in ("download", "upload")}
    return _Machine(machine=server.partition("://")[2], urls=urls)


async def _located(options: Ndt7Options) -> Sequence[_Machine]:
    """Ask the locate service for machines, the nearest first."""
    transport = httpx.AsyncHTTPTransport(local_address=str(options.source_address) if options.source_address else None)
    try:
        async with httpx.AsyncClient(transport=transport, timeout=options.timeout_s, headers={"User-Agent": _version()}) as client:
            answer = await client.get(options.locate)
    except httpx.TimeoutException:
        raise ProbeError("timeout", f"the locate service {options.locate} did not answer within {options.timeout_s:g} s") from None
    except httpx.HTTPError as error:
        kind = "line_down" if "unreachable" in str(error).lower() else "unreachable"
        raise ProbeError(kind, f"the locate service {options.locate} does not answer: {error}") from None
    if answer.is_redirect:
        raise ProbeError("redirected", f"the locate service {options.locate} sends elsewhere (HTTP {answer.status_code})")
    if answer.status_code != 200:
        kind = STATUS_KINDS.get(answer.status_code, "bad_answer")
        raise ProbeError(kind, f"the locate service {options.locate} answers HTTP {answer.status_code}: run it less often if it says so")
    try:
        return _Located.model_validate_json(answer.content).results
    except ValidationError as error:
        raise ProbeError("bad_answer", f"the locate service {options.locate} names no machine: {reasons(error)}") from None


async def _measured(machine: _Machine, options: Ndt7Options, report: Report) -> Measurement:
    found: dict[str, Any] = {}
    details: dict[str, Any] = {"machine": machine.machine}
    if options.download:
        report("download")
        async with await _opened(machine, "download", options) as socket:
            carried, seconds, told = await _download(socket)
        _must_carry(machine, "download", carried, seconds)
        found |= {"download_bps": carried * 8 / seconds, "download_bytes": carried}
        if told.TCPInfo and told.TCPInfo.BytesSent and told.TCPInfo.BytesRetrans is not None:
            details["retransmission"] = told.TCPInfo.BytesRetrans / told.TCPInfo.BytesSent
        if told.TCPInfo and told.TCPInfo.MinRTT:
            found["latency_s"] = told.TCPInfo.MinRTT / 1e6
    if options.upload:
        report("upload")
        async with await _opened(machine, "upload", options) as socket:
            told = await _upload(socket)
        received, seconds = _received(told)
        _must_carry(machine, "upload", received, seconds)
        found |= {"upload_bps": received * 8 / seconds, "upload_bytes": received}
        if told.TCPInfo and told.TCPInfo.MinRTT:
            found.setdefault("latency_s", told.TCPInfo.MinRTT / 1e6)
    place = machine.location
    server = Server(id=machine.machine, name=place.city, country_code=place.country, host=machine.machine)
    return Measurement(**found, server=server, engine_version=_version(), details=details)


async def _opened(machine: _Machine, direction: str, options: Ndt7Options) -> ClientConnection:
    """Open a websocket.

    Raises: _NotServed with the reason, when it cannot be.
    """
    url = machine.url(direction)
    local: dict[str, Any] = {"local_addr": (str(options.source_address), 0)} if options.source_address else {}
    try:
        return await connect(
            url,
            subprotocols=[PROTOCOL],
            user_agent_header=_version(),
            compression=None,
            max_size=2**24,
            ping_interval=None,
            proxy=None,
            open_timeout=options.timeout_s,
            close_timeout=2,
            **local,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        raise _NotServed(STATUS_KINDS.get(status, "bad_answer"), f"{machine.machine} answers HTTP {status}") from None
    except (InvalidHandshake, ssl.SSLError) as error:
        raise _NotServed("bad_answer", f"{machine.machine} does not speak NDT7: {error}") from None
    except TimeoutError:
        raise _NotServed("timeout", f"{machine.machine} did not answer within {options.timeout_s:g} s") from None
    except OSError as error:
        kind = "line_down" if "unreachable" in str(error).lower() else "unreachable"
        raise _NotServed(kind, f"{machine.machine} does not answer: {error}") from None


async def _download(socket: ClientConnection) -> tuple[int, float, _Told]:
    """Return the bytes that came, the seconds that they took, and the server's last word."""
    carried, last, told = 0, 0.0, _Told()
    started = time.perf_counter()
    try:
        async with asyncio.timeout(LONGEST_S):
            async for message in socket:
                if isinstance(message, bytes):
                    carried += len(message)
                    last = time.perf_counter() - started
                else:
                    told = _heard(message, told)
    except TimeoutError:
        pass  # a server that goes on and on: what came is as good
    except ConnectionClosed as error:
        raise ProbeError("truncated", f"the download broke off after {last:.1f} s: {error}", engine_version=_version()) from None
    return carried, last, told


async def _upload(socket: ClientConnection) -> _Told:
    """Send for ten seconds and return the server's last word."""
    told = _Told()

    async def listen() -> None:
        nonlocal told
        async for message in socket:
            if isinstance(message, str):
                told = _heard(message, told)

    listening = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(LONGEST_S):
            await _send(socket)
            await socket.close()
            await listening
    except (ConnectionClosedOK, TimeoutError):
        pass  # the server may be the first to end it
    except ConnectionClosed as error:
        raise ProbeError("truncated", f"the upload broke off: {error}", engine_version=_version()) from None
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    return told


async def _send(socket: ClientConnection) -> None:
    """Send messages that double as long as they are at most a sixteenth of what was sent."""
    message, sent, end = os.urandom(SMALLEST_MESSAGE), 0, time.perf_counter() + UPLOAD_S
    while time.perf_counter() < end:
        await socket.send(message)
        sent += len(message)
        if len(message) < LARGEST_MESSAGE and len(message) * 2 <= sent / 16:
            message += message


def _heard(message: str, before: _Told) -> _Told:
    try:
        return _Told.model_validate_json(message)
    except ValidationError:
        return before  # a text that is no measurement tells nothing


def _received(told: _Told) -> tuple[int, float]:
    """Return the bytes that the server received and the seconds: as its TCP counts, or else its program."""
    tcp, app = told.TCPInfo, told.AppInfo
    if tcp and tcp.BytesReceived is not None and tcp.ElapsedTime:
        return tcp.BytesReceived, tcp.ElapsedTime / 1e6
    return (app.NumBytes, app.ElapsedTime / 1e6) if app else (0, 0.0)


def _must_carry(machine: _Machine, direction: str, carried: int, seconds: float) -> None:
    if not (carried > 0 and seconds > 0):
        kind = "bad_answer" if direction == "download" else "unconfirmed"
        raise ProbeError(kind, f"{machine.machine} tells of not one byte of the {direction}", engine_version=_version())
