"""The engine `ndt7`: M-Lab's NDT7 over a websocket, in a child process (`services.runner.ndt7_child`).

One stream each way, against the machine that M-Lab's locate service names. Rates are those of the engine `http`; M-Lab's own
figure, the mean of the whole test, is in the details. The latency is the smallest round trip that the server's TCP saw (MinRTT).
M-Lab publishes the results, with the address of this line. (NDT7 spec v0.11)
"""

from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from services.runner.child import Child
from services.runner.probes import Options, Report
from shared.events import Bytes, Confidence, Limit, Measurement, Positive, Server, Share

CHILD = "services.runner.ndt7_child"
LOCATE = "https://locate.measurementlab.net/v2/nearest/ndt/ndt7"
DIRECTION_S = 10.0
"""As long as a server sends, by the specification."""

Url = Annotated[str, StringConstraints(max_length=500, pattern=r"^https?://[^\s/]+")]


class Answer(BaseModel):
    """The measurement, as the child tells it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["answer"]
    latency_s: Positive | None = None
    download_bps: Positive | None = None
    upload_bps: Positive | None = None
    download_bytes: Bytes | None = None
    upload_bytes: Bytes | None = None
    download_spread: Share | None = None
    upload_spread: Share | None = None
    limited_by: Limit | None = None
    confidence: Confidence | None = None
    server: Server
    details: dict[str, Any]


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

    @property
    def deadline_s(self) -> float:
        """How long the whole run may take: both directions, and every step to every machine as slow as it may be."""
        return 4 * DIRECTION_S + 12 * self.timeout_s


async def measure(options: Ndt7Options, report: Report) -> Measurement:
    """Measure each direction that is wanted, at the first of at most four machines that serves this client.

    Raises: ProbeError of the kinds `rate_limited`, `blocked`, `line_down`, `unreachable`, `timeout`, `redirected`, `truncated`,
    `unconfirmed` (uploads), `bad_answer`, `misconfigured`, `crashed`.
    """
    child = Child(CHILD, "ndt7", Answer, report)
    engine_version = f"refresher {version('refresher')}"
    way = {"ip_version": None, "interface": None, "ca_file": None, "direction_s": DIRECTION_S}
    answer = await child.measure({**options.model_dump(mode="json"), **way}, options.deadline_s, engine_version)
    told = answer.model_dump(exclude={"type", "server"}, exclude_none=True)
    return Measurement(**told, server=answer.server, engine_version=engine_version, log=child.log())
