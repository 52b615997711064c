"""The API's settings."""

from shared.settings import DatabaseSettings, Port


class ApiSettings(DatabaseSettings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    api_host: str = "127.0.0.1"
    """Where the API listens."""
    api_port: Port = 8470
    """The port for that; 0 takes any free one."""
    api_hosts: str = ""
    """The names under which the API may be called besides localhost and plain addresses, separated by commas.

    `*` allows every name: only behind a proxy that checks it, for else any web page could have a name of its own point
    here and read the answers (DNS rebinding).
    """
