"""The scheduler's settings."""

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from shared.events import Name
from shared.settings import Port, Settings, names


class SchedulerSettings(Settings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    nats_replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """On how many servers of a NATS cluster each stream is kept: 3 survives the loss of one. Raised where it is less, never lowered."""
    leaves: Annotated[tuple[Name, ...], NoDecode, BeforeValidator(names)] = ()
    """The sites that have a NATS server of their own, a leaf of this one, separated by commas: their results are fetched from there."""
    leaf: Name | None = None
    """The site whose leaf this scheduler runs at: it takes the schedules from the hub, and publishes the ticks of this site alone."""
    scheduler_host: str = "127.0.0.1"
    """Where the scheduler serves health and metrics."""
    scheduler_port: Port = 8471
    """The port for that; 0 takes any free one."""
