"""The test server's metrics."""

from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector


class Metrics:
    """What Prometheus sees. Labels are the direction as the client sees it, and words of this package: never a client's own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.version = version("refresher")
        Gauge("refresher_build_info", "The version that runs.", ["service", "version"], registry=self.registry).labels(
            "testserver", self.version
        ).set(1)
        self.bytes = Counter(
            "refresher_testserver_bytes_total",
            "Bytes of bodies sent (download) and received (upload).",
            ["direction"],
            registry=self.registry,
        )
        self.in_flight = Gauge("refresher_testserver_transfers_in_flight", "Transfers under way.", ["direction"], registry=self.registry)
        self.transfers = Counter(
            "refresher_testserver_transfers_total", "Transfers ended, by how.", ["direction", "outcome"], registry=self.registry
        )
        self.connections = Gauge("refresher_testserver_connections", "Connections open.", registry=self.registry)
        self.refused = Counter("refresher_testserver_refused_total", "Requests refused, by reason.", ["reason"], registry=self.registry)
        self.datagrams = Counter("refresher_testserver_datagrams_total", "Datagrams received, by fate.", ["fate"], registry=self.registry)
        for direction in ("download", "upload"):  # there from the start, so that a rate has a zero to begin at
            self.bytes.labels(direction)
            self.in_flight.labels(direction)
