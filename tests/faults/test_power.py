"""What a power cut would take: nothing that was acknowledged, with every configuration that is shipped."""

import asyncio
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests import deployed, ports
from tests.cluster import Cluster
from tests.leaf import Line, leaf
from tests.servers import Nats, wait_for_port

SHIPPED = {"nats.conf", "leaf.conf"}
"""The configurations in deploy/nats that are tried here."""


def _told(port: int) -> dict[str, Any]:
    """Return what a running server says of its JetStream."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/varz", timeout=5) as answer:
        return dict(json.load(answer)["jetstream"]["config"])


def _keeps_what_it_acknowledges(jetstream: dict[str, Any]) -> bool:
    return jetstream["sync_always"] is True and bool(jetstream["store_dir"])


@pytest.mark.short
def test_the_embedded_server_writes_before_it_acknowledges(tmp_path: Path) -> None:
    """As `refresher up` starts it."""
    server = Nats(tmp_path)
    try:
        server.kill()
        monitor = ports.take()
        server.configuration.write_text(f'{server.configuration.read_text()}http: "127.0.0.1:{monitor}"\n')
        server.start()
        assert _keeps_what_it_acknowledges(_told(monitor))
    finally:
        server.stop()


@pytest.mark.short
def test_the_deployed_server_writes_before_it_acknowledges(tmp_path: Path) -> None:
    """As deploy/compose.yml starts it."""
    bus = deployed.Bus(tmp_path)
    try:
        assert _keeps_what_it_acknowledges(_told(bus.monitor))
    finally:
        bus.stop()


@pytest.mark.short
async def test_the_server_of_a_site_writes_before_it_acknowledges(tmp_path: Path) -> None:
    """As deploy/compose.leaf.yml starts it."""
    async with Line(ports.take()) as line:
        server = await asyncio.to_thread(leaf, tmp_path / "office", "office", line)
        try:
            found = re.search(r'http: "127.0.0.1:(\d+)"', (tmp_path / "office" / "nats.conf").read_text())
            assert found
            assert _keeps_what_it_acknowledges(await asyncio.to_thread(_told, int(found[1])))
        finally:
            await asyncio.to_thread(server.stop)


@pytest.mark.short
async def test_every_server_of_a_cluster_writes_before_it_acknowledges(tmp_path: Path) -> None:
    """As the tests and `make cluster` start them."""
    cluster = Cluster(tmp_path)
    try:
        await asyncio.to_thread(cluster.start)
        for member in cluster.members:
            await asyncio.to_thread(wait_for_port, member.monitor)
            assert _keeps_what_it_acknowledges(_told(member.monitor))
    finally:
        await asyncio.to_thread(cluster.stop)


@pytest.mark.short
def test_every_shipped_configuration_is_tried() -> None:
    """A new one is not forgotten here."""
    assert {path.name for path in (deployed.DEPLOY / "nats").glob("*.conf")} == SHIPPED
    values = (deployed.DEPLOY / "kubernetes" / "nats.values.yaml").read_text()
    assert "sync_interval: always" in values, "the one that takes a Kubernetes to run is only read"
