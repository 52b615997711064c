"""The facts that travel on the bus, as JSON that a person can read with the NATS command line.

Events ignore fields they do not know (an older reader lives with a newer writer) and cannot be changed.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID, uuid5

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

RUNS = UUID("6f1e7a4c-4f0f-5f0e-9a53-0d9c5b6f6f52")
"""The name space of scheduled runs: run_id = uuid5 of schedule, site and due instant."""


def _storable(text: str) -> str:
    """Refuse what Postgres cannot store in a text column."""
    if "\x00" in text:
        raise ValueError("contains a NUL character")
    return text


ANY = "any"
"""In the place of a line: whichever line of the site is free first. No line has this name."""


def _names_one(line: str) -> str:
    if line == ANY:
        raise ValueError("stands for whichever line of a site is free, so no line can have this name: give it another one")
    return line


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
"""A site, schedule, engine or line: lower case letters, digits, `-` and `_`, at most 63; safe as a subject token."""
LineName = Annotated[Name, AfterValidator(_names_one)]
"""What a line is called; `any` is none of them."""
Text = Annotated[str, StringConstraints(max_length=1_000), AfterValidator(_storable)]
Log = Annotated[str, StringConstraints(max_length=16_000), AfterValidator(_storable)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Grade = Literal["A+", "A", "B", "C", "D", "F"]
"""Less than 5, 30, 60, 200, 400 ms of latency that load adds, or more."""
Limit = Literal["line", "host", "loss"]
Confidence = Literal["reliable", "indicative", "underestimates"]
Trigger = Literal["schedule", "catch_up", "manual"]
Overlap = Literal["queue_all", "queue_one", "skip", "cancel_other"]
"""What becomes of a run whose line is busy: it waits; waits unless another one does; ends as `skipped`; or the others are cut short."""


class Event(BaseModel):
    """The base of every event."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> bytes:
        """Serialise without the fields that are not set."""
        return self.model_dump_json(exclude_none=True).encode()


def run_id_of(schedule: str, site: str, due_at: AwareDatetime) -> UUID:
    """Return the id of a scheduled run: the same from every scheduler replica, the key of all de-duplication."""
    return uuid5(RUNS, f"{schedule}:{site}:{int(due_at.timestamp())}")


class Fallback(Event):
    """The engine that measures when the first one failed."""

    engine: Name
    options: dict[str, Any] = {}


class Tick(Event):
    """A run is due. Scheduler (or API, for a manual run) to runner; one per schedule, site and instant."""

    run_id: UUID
    site: Name
    schedule: Name | None = None
    """None for a run that somebody asked for by hand without naming a schedule."""
    trigger: Trigger
    engine: Name
    options: dict[str, Any] = {}
    """For the engine, which validates them."""
    fallback: Fallback | None = None
    """What to run instead when the engine failed."""
    line: Name | None = None
    """The line of the site to measure; None is the one without a name, `any` whichever is free first."""
    labels: tuple[Name, ...] = ()
    """What the runner must have among its labels."""
    due_at: AwareDatetime
    """The instant on the schedule, not the instant of publishing."""
    start_at: AwareDatetime | None = None
    """When to start, with spread and jitter; None is `due_at`."""
    published_at: AwareDatetime
    expires_at: AwareDatetime
    """From here on it is too late: the run ends as `missed`."""
    overlap: Overlap = "queue_all"
    """What becomes of it when the line is busy."""
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    """Of the ticks that wait for a line, one of the highest priority goes first."""


class Claim(Event):
    """A line of a site has a run that any of them may measure, or wants it. Runner to the other lines of the site."""

    run_id: UUID
    site: Name
    line: Name | None = None
    """None is the one without a name."""
    runner: Text
    """The process that says so. The run is the line's, and its next runner's should this one end."""
    at: AwareDatetime


class Lease(Event):
    """A runner measures on a line: the value of the line's key in the bucket of lines, for a few seconds each."""

    site: Name
    line: Name | None = None
    runner: Text
    at: AwareDatetime


class Progress(Event):
    """How a run is getting on, a few times a second. Runner to whoever looks (core NATS, not stored)."""

    run_id: UUID
    site: Name
    schedule: Name | None = None
    engine: Name
    at: AwareDatetime
    phase: Text
    """What is being done: `connecting`, `latency`, `download`, `upload`, or an engine's own word."""
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much of the phase is done."""
    rate_bps: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The rate of the moment in bit/s: for showing, not for keeping."""


class Server(Event):
    """The far end of a measurement."""

    id: Text | None = None
    name: Text | None = None
    sponsor: Text | None = None
    url: Text | None = None
    host: Text | None = None
    country: Text | None = None
    country_code: Text | None = None
    latitude: Annotated[float, Field(ge=-90, le=90)] | None = None
    longitude: Annotated[float, Field(ge=-180, le=180)] | None = None
    distance_m: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Client(Event):
    """The near end of a measurement, as the far end sees it."""

    isp: Text | None = None
    address: Text | None = None
    country_code: Text | None = None
    latitude: Annotated[float, Field(ge=-90, le=90)] | None = None
    longitude: Annotated[float, Field(ge=-180, le=180)] | None = None


class Measurement(Event):
    """What an engine measured. A number is true or absent, never 0 or -1."""

    download_bps: Positive | None = None
    upload_bps: Positive | None = None
    latency_s: Positive | None = None
    """Idle round-trip time."""
    jitter_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    packet_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    """The share of packets lost on the way, 0 to 1; not those that a full line drops."""
    download_latency_s: Positive | None = None
    """Round-trip time while the download fills the line: the median."""
    upload_latency_s: Positive | None = None
    """The same while an upload does."""
    responsiveness_rpm: Positive | None = None
    """Round trips per minute under load, of both directions the lower one (draft-ietf-ippm-responsiveness)."""
    bufferbloat_grade: Grade | None = None
    """A letter for the latency that load adds."""
    download_spread: Share | None = None
    """How far the rate varied while it was measured: the range of the middle half of its slices as a share of their median."""
    upload_spread: Share | None = None
    limited_by: Limit | None = None
    """What held the rates back; other than `line`, the line may carry more."""
    confidence: Confidence | None = None
    """How far the rates are to be believed."""
    download_bytes: Bytes | None = None
    upload_bytes: Bytes | None = None
    server: Server = Server()
    client: Client = Client()
    engine_version: Text | None = None
    details: dict[str, Any] = {}
    """What only this engine knows; stored as it is."""
    log: Log = ""
    """The end of what the engine said."""


class Status(StrEnum):
    """How an instant of a schedule ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    MISSED = "missed"


class Failure(Event):
    """Why there is no measurement."""

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    """One word for counting and alerting; see ProbeError; besides those `expired`, `abandoned`, `too_large`,
    `no_label`, `line_busy` and `cancelled` (overlap), and where nobody took the run `no_runner`, `runner_offline`,
    `scheduler_down`, `changed` and `lost`."""
    message: Annotated[str, StringConstraints(min_length=1, max_length=4_000), AfterValidator(_storable)]


class Result(Event):
    """A run has ended. Runner to recorder; exactly one per run: a measurement, or the failure that took its place."""

    run_id: UUID
    site: Name
    schedule: Name | None = None
    trigger: Trigger
    engine: Name
    due_at: AwareDatetime
    status: Status
    runner: Text | None = None
    """The process that ran it."""
    line: Name | None = None
    """The line that was measured; None is the one without a name. `any` where the run was any line's and none started it."""
    start_at: AwareDatetime | None = None
    """When it was to start, with spread and jitter; None is `due_at`."""
    started_at: AwareDatetime | None = None
    """None when it never started."""
    finished_at: AwareDatetime
    attempt: Annotated[int, Field(ge=1, le=1_000)] = 1
    """How often the tick had been delivered."""
    engine_version: Text | None = None
    fallback_for: Name | None = None
    """The engine that failed first, where `engine` is the fallback."""
    measurement: Measurement | None = None
    failure: Failure | None = None
    log: Log = ""

    @model_validator(mode="after")
    def _has_one_outcome(self) -> Self:
        if (self.status is Status.SUCCEEDED) != (self.measurement is not None):
            raise ValueError("a measurement belongs to status succeeded, and only there")
        if (self.status is Status.SUCCEEDED) == (self.failure is not None):
            raise ValueError("a failure belongs to every status but succeeded")
        return self
