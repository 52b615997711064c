"""The engine `http`: Refresher's own measurement over HTTP, in a child process (`services.runner.http_child`).

Rates are goodput: the payload of TCP, with HTTP's heads and TLS's records, as the kernel counts it: received in order, and
acknowledged by the far end. docs/accuracy.md has the rules, the statistics and what was found against known lines.
"""

from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.runner.child import Child
from services.runner.probes import Options, Report
from shared.events import Bytes, Client, Confidence, Grade, Limit, Measurement, Positive, Server, Share

CHILD = "services.runner.http_child"
PUBLIC_LIST = "https://librespeed.org/backend-servers/servers.php"
Short = Annotated[str, Field(min_length=1, max_length=1_000)]


class Answer(BaseModel):
    """The measurement, as the child tells it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["answer"]
    latency_s: Positive
    jitter_s: Share
    packet_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    download_bps: Positive | None = None
    upload_bps: Positive | None = None
    download_bytes: Bytes
    upload_bytes: Bytes
    download_latency_s: Positive | None = None
    upload_latency_s: Positive | None = None
    responsiveness_rpm: Positive | None = None
    bufferbloat_grade: Grade | None = None
    download_spread: Share | None = None
    upload_spread: Share | None = None
    limited_by: Limit | None = None
    confidence: Confidence | None = None
    server: Server
    client: Client
    details: dict[str, Any]


class HttpOptions(Options):
    """What the engine `http` takes."""

    backend: Literal["librespeed", "cloudflare"] = "librespeed"
    """What the server speaks; Refresher's own test server speaks as LibreSpeed does."""
    server: Short | None = None
    """The server's address, such as `http://192.0.2.1:8477` or `https://speed.example.org/backend`."""
    server_list: Short | None = None
    """The address of a list of LibreSpeed servers (JSON), of which the one with the lowest latency is taken; where no server is
    named either, LibreSpeed's own list of public ones."""
    token: Annotated[str, Field(pattern=r"^[!-~]{1,200}$")] | None = None
    """For a test server that asks for one."""
    ip_version: Literal[4, 6] | None = None
    """Only this version of IP; else whichever connects first."""
    source_address: IPv4Address | IPv6Address | None = None
    """The address of this machine to measure from: chooses the line where there are two."""
    interface: Annotated[str, Field(pattern=r"^[^\s/]{1,15}$")] | None = None
    """The network interface to measure over (Linux)."""
    ca_file: Short | None = None
    """The certificate of the authority that the server is signed by, where that is not one that the system trusts."""
    timeout_s: Annotated[float, Field(ge=0.5, le=60)] = 5
    """How long a connection, and the line, may be silent."""
    deadline_s: Annotated[float, Field(ge=10, le=600)] = 40
    """How long the whole run may take; by itself it takes at most 20 s."""
    max_bytes: Annotated[int, Field(ge=1, lt=2**63)] = 50_000_000_000
    """Both directions together; each may use half of it. By itself a run takes about 1 GB on a line of 1 Gbit/s."""
    light: bool = False
    """For lines that are paid by the byte: at most 60 MB, and less exact."""
    streams: Annotated[int, Field(ge=2, le=32)] = 16
    """The most connections at once; there are only as many as bring more."""
    download: bool = True
    upload: bool = True
    loss: bool = True
    """Measure packet loss, with an upload at a quarter of the line's rate and, where the server echoes, datagrams."""

    @model_validator(mode="after")
    def _names_one_server(self) -> "HttpOptions":
        if self.server is not None and self.server_list is not None:
            raise ValueError("name a server, or a server_list to choose the nearest from, and not both")
        return self


def order(options: HttpOptions) -> dict[str, Any]:
    """Return what the child is told: these options, and of whom to ask for a server where they name none."""
    told = options.model_dump(mode="json", exclude={"deadline_s"})
    nobody = options.backend == "librespeed" and options.server is None and options.server_list is None
    return {**told, "server_list": PUBLIC_LIST} if nobody else told


async def measure(options: HttpOptions, report: Report) -> Measurement:
    """Measure latency, download, upload, latency under load and loss against one server.

    Raises: ProbeError of the kinds `unreachable`, `line_down`, `timeout`, `rate_limited`, `blocked`, `redirected`, `bad_answer`,
    `truncated`, `unconfirmed` (uploads), `no_server`, `byte_limit`, `misconfigured`, `crashed`.
    """
    child = Child(CHILD, "http", Answer, report)
    engine_version = f"refresher {version('refresher')}"
    answer = await child.measure(order(options), options.deadline_s, engine_version)
    told = answer.model_dump(exclude={"type", "server", "client"}, exclude_none=True)
    return Measurement(**told, server=answer.server, client=answer.client, engine_version=engine_version, log=child.log())
