"""The recorder's settings."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field

from shared.settings import DatabaseSettings, Port


def _days(value: object) -> object:
    """Read a number of days."""
    if isinstance(value, str):
        if not (found := re.fullmatch(r"([0-9]{1,5})d", value)):
            raise ValueError("a number of days is written like 400d")
        return timedelta(days=int(found[1]))
    return value


Retention = Annotated[timedelta, BeforeValidator(_days), Field(ge=timedelta(days=31), le=timedelta(days=36_500))]


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
    retention: Retention | None = None
    """How long results are kept, from `31d` on: `400d`, for example. A month is dropped when all of it is older; unset, none ever is."""
