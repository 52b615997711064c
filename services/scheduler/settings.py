"""The scheduler's settings."""

from shared.settings import Port, Settings


class SchedulerSettings(Settings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    scheduler_host: str = "127.0.0.1"
    """Where the scheduler serves health and metrics."""
    scheduler_port: Port = 8471
    """The port for that; 0 takes any free one."""
