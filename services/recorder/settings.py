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
