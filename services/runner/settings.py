"""The runner's settings."""

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from shared.events import LineName, Name
from shared.settings import Port, Settings, names


class RunnerSettings(Settings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    site: Name = "home"
    """Where this runner measures: it takes the ticks of this site."""
    line: LineName | None = None
    """Which line of the site it sits on, where there are several: it takes the ticks of this one, and those for any line
    (so none is called `any`). Runners of one line never measure at once, those of different lines do."""
    labels: Annotated[tuple[Name, ...], NoDecode, BeforeValidator(names)] = ()
    """What schedules may ask for, separated by commas: `fast,ipv6`."""
    runner_host: str = "127.0.0.1"
    """Where the runner serves health and metrics."""
    runner_port: Port = 8472
    """The port for that; 0 takes any free one."""
