"""What speedtest.net answers: the configuration, the list of servers, the sizes of the images."""

from dataclasses import dataclass, field
from xml.sax.saxutils import quoteattr

IMAGE_BYTES = {
    350: 245388,
    500: 505544,
    750: 1118012,
    1000: 1986284,
    1500: 4468241,
    2000: 7907740,
    2500: 12407926,
    3000: 17816816,
    3500: 24262167,
    4000: 31625365,
}
PORTAL = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body>Please accept our terms to use this network.</body></html>"


@dataclass
class World:
    """What the stand-in says of the client, the tests and the servers; every value may be changed to nonsense."""

    client: dict[str, str] = field(
        default_factory=lambda: {"ip": "192.0.2.7", "lat": "52.52", "lon": "13.405", "isp": "Stand-in Telecom", "country": "DE"}
    )
    server_config: dict[str, str] = field(default_factory=lambda: {"threadcount": "4", "ignoreids": ""})
    download: dict[str, str] = field(default_factory=lambda: {"testlength": "1", "threadsperurl": "4"})
    upload: dict[str, str] = field(
        default_factory=lambda: {"testlength": "1", "ratio": "5", "threads": "2", "maxchunkcount": "50", "maxchunksize": "512K"}
    )
    servers: list[dict[str, str]] = field(
        default_factory=lambda: [
            {"id": "1001", "name": "Potsdam", "sponsor": "Near & Dear", "country": "Germany", "cc": "DE", "lat": "52.39", "lon": "13.06"},
            {"id": "1002", "name": "Oslo", "sponsor": "Far", "country": "Norway", "cc": "NO", "lat": "59.91", "lon": "10.75"},
        ]
    )
    """A server without `url` and `host` is the stand-in itself."""

    def configuration(self) -> bytes:
        """Return speedtest-config.php."""
        parts = (("client", self.client), ("server-config", self.server_config), ("download", self.download), ("upload", self.upload))
        return _document("settings", "".join(_element(name, attributes) for name, attributes in parts))

    def server_list(self, host: str) -> bytes:
        """Return speedtest-servers-static.php; `host` is where the stand-in listens."""
        here = {"url": f"http://{host}/speedtest/upload.php", "host": host}
        return _document("settings", f"<servers>{''.join(_element('server', {**here, **each}) for each in self.servers)}</servers>")


def _document(root: str, inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{inside}</{root}>'.encode()


def _element(name: str, attributes: dict[str, str]) -> str:
    return f"<{name} {' '.join(f'{key}={quoteattr(value)}' for key, value in attributes.items())}/>"
