"""The recorder's settings."""

from typing import Annotated

from pydantic import Field

from shared.settings import DatabaseSettings, Port


class RecorderSettings(DatabaseSettings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    recorder_host: str = "127.0.0.1"
    """Where the recorder serves health and metrics."""
    recorder_port: Port = 8473
    """The port for that; 0 takes any free one."""
    recorder_batch: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """How many results are stored in one transaction at most."""
    recorder_settle_every_s: Annotated[float, Field(ge=0.1, le=600)] = 10
    """How often the recorder looks for runs that have no row, in seconds."""
    recorder_settle_after_s: Annotated[float, Field(ge=1, le=600)] = 20
    """How long a row may be on its way, in seconds, before the recorder asks what became of the run."""
    recorder_audit_every_s: Annotated[float, Field(ge=0.1, le=86_400)] = 300
    """How often the recorder audits the last day for its metrics, in seconds."""
