"""`make cluster`, as somebody runs it who wants to see the system survive."""

import json
import signal
import sys
from pathlib import Path

import httpx
import psutil

from services.embedded.cluster import SERVERS, SERVICES
from tests import ports
from tests.http import plain
from tests.integration.test_up import Up, all_gone, insist
from tests.servers import stop
from tests.standin.server import StandIn


class Cluster(Up):
    """One `make cluster` on a data directory."""

    command = (sys.executable, "-m", "services.embedded.cluster")

    def take_ports(self) -> None:
        """Remember ports that no other test has."""
        names = [f"{server}{part}" for server in SERVERS for part in ("", "-route", "-monitor")]
        (self.data / "ports.json").write_text(json.dumps(ports.taken("postgres", *SERVICES, *names)))


def test_a_cluster_survives_the_end_of_its_parts(open_directory: Path) -> None:
    """It says where everything is; the end of a server and of a service is not noticed; Ctrl-C ends all of it."""
    with StandIn(download_bps=200e6, upload_bps=100e6) as standin:
        cluster = Cluster(open_directory / "data", **standin.environment())
        try:
            said = cluster.wait_for("the first test")
            assert all(name in said for name in (*SERVERS, *SERVICES))
            for victim in [_first(cluster, word) for word in ("nats-1.conf", "services.recorder", "services.scheduler")]:
                victim.kill()
            spec = {"name": "often", "engine": "noop", "timing": {"kind": "interval", "every_s": 1}}
            insist(lambda: plain.post(f"{cluster.api}/api/v1/schedules", json=spec).raise_for_status())
            insist(lambda: _succeeded(cluster))
            processes = cluster.processes()
            cluster.process.send_signal(signal.SIGINT)
            assert cluster.process.wait(60) == 0
            assert all_gone(processes)
        finally:
            stop(cluster.process)


def _first(cluster: Up, word: str) -> psutil.Process:
    return next(each for each in psutil.Process(cluster.process.pid).children() if word in " ".join(each.cmdline()))


def _succeeded(cluster: Up) -> None:
    if not any(result["status"] == "succeeded" for result in cluster.results(schedule="often")):
        raise httpx.HTTPError("no result yet")
