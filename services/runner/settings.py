"""The runner's settings."""

from shared.events import Name
from shared.settings import Port, Settings


class RunnerSettings(Settings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    site: Name = "home"
    """Where this runner measures: it takes the ticks of this site."""
    runner_host: str = "127.0.0.1"
    """Where the runner serves health and metrics."""
    runner_port: Port = 8472
    """The port for that; 0 takes any free one."""
