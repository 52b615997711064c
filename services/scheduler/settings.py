"""The scheduler's settings."""

from typing import Annotated

from pydantic import Field

from shared.settings import Port, Settings


class SchedulerSettings(Settings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    nats_replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """On how many servers of a NATS cluster each stream is kept: 3 survives the loss of one. Raised where it is less, never lowered."""
    scheduler_host: str = "127.0.0.1"
    """Where the scheduler serves health and metrics."""
    scheduler_port: Port = 8471
    """The port for that; 0 takes any free one."""
