"""The four services as processes of their own, as they run in earnest."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import ports
from tests.http import sample, wait_until_ready
from tests.servers import stop


class ServiceProcess:
    """A service that a test may kill and start again; its log is in `log`.

    `inside` is a command that runs the one behind it elsewhere, such as in a network namespace, with the address `host`.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        nats_url: str,
        database_url: str = "",
        *,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.name = name
        self.port = ports.take()
        self.url = f"http://{host}:{self.port}"
        self._inside = inside
        self.log = directory / f"{name}-{self.port}.log"
        self._environment = {
            **os.environ,
            "REFRESHER_NATS_URL": nats_url,
            "REFRESHER_DATABASE_URL": database_url,
            f"REFRESHER_{name.upper()}_HOST": host,
            f"REFRESHER_{name.upper()}_PORT": str(self.port),
            "REFRESHER_LOG_FORMAT": "json",
            **environment,
        }
        self.start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._inside, sys.executable, "-m", f"services.{self.name}"], env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_until_ready(self, deadline_s: float = 20) -> "ServiceProcess":
        """Wait for its readiness."""
        wait_until_ready(f"{self.url}/health/ready", self.process, self.log, deadline_s)
        return self

    def metric(self, name: str) -> float:
        """Return the value of a sample as it stands in `/metrics`, labels included; 0 when it is not there."""
        return sample(f"{self.url}/metrics", name)

    def kill(self) -> None:
        """End it without any warning."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to stop and wait until it has."""
        stop(self.process)
