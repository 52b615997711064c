"""A measurement from beginning to end: find the server, idle latency, download, upload, loss."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.runner.confined import Channel, Failed
from services.runner.http_child import loss as losses
from services.runner.http_child.address import Place, find
from services.runner.http_child.backends import cloudflare, librespeed, server_list
from services.runner.http_child.connection import Endpoint, Tally
from services.runner.http_child.latency import LOADED_PINGS, Idle, Probes, Probing, grade, idle
from services.runner.http_child.load import Limits, Load, Loaded, rates_of, told_of
from services.runner.http_child.order import Order
from services.runner.http_child.service import Service
from services.runner.http_child.streams import Stream, download, upload
from services.runner.http_child.tasks import Loop
from services.runner.http_child.verdict import confidence, limited_by, worst

LONGEST_S = 6.0
"""A direction."""
RUN_S = 18.0
"""The whole: what is left at its end is for the loss."""
LIGHT_BYTES = {"download": 35_000_000, "upload": 20_000_000}
"""With the last slice, the probes and the loss less than 60 MB in all. On one connection: several at once overflow the queue in
slow start, and the holes that this leaves take longer to fill than there is to measure."""
BACKENDS = {"librespeed": librespeed.find, "cloudflare": cloudflare.find}


class Run:
    """One measurement."""

    def __init__(self, order: Order, channel: Channel) -> None:
        self._order, self._channel, self._loop = order, channel, Loop()
        self._began = time.monotonic()
        self._loads: dict[str, Loaded] = {}
        self._probes: dict[str, Probes] = {}

    def measure(self) -> dict[str, Any]:
        """Return what the parent reads as an answer.

        Raises: Failed.
        """
        self._begin("connecting")
        place, self._service = self._find()
        self._endpoint: Endpoint = place.endpoint
        self._beside = replace(place.endpoint, tally=Tally())  # for the probes beside a load, so that they do not pass for it
        self._channel.log(f"{self._service.name} at {place.url} ({place.endpoint.address[0]})")
        self._begin("latency")
        self._idle: Idle = self._loop.finish(idle(self._endpoint, self._service))
        if self._order.download:
            self._load("download", lambda: download(self._endpoint, self._service))
        if self._order.upload:
            self._load("upload", lambda: upload(self._endpoint, self._service))
        lost = self._loss() if self._order.loss else {}
        return self._answer(lost)

    def _begin(self, phase: str) -> None:
        self._channel.send("progress", phase=phase)

    def _find(self) -> tuple[Place, Service]:
        order = self._order
        if order.server_list and order.backend == "librespeed":
            return server_list.nearest(self._loop, order.server_list, order)
        place = find(self._loop, order.server or cloudflare.SERVER, order)
        return place, self._loop.finish(BACKENDS[order.backend](place, order))

    def _load(self, phase: str, make: Callable[[], Stream]) -> None:
        self._begin(phase)
        probing = Probing(self._loop, self._beside, self._service)
        try:
            load = Load(self._loop, phase, make, self._limits(phase, probing.found), self._channel)
            loaded = load.run(lambda since: len(probing.found.since(since).latencies_s()) >= LOADED_PINGS)
        finally:
            problem = probing.stop()
        if problem:
            self._channel.log(f"latency under {phase}: {problem}")
        self._loads[phase], self._probes[phase] = loaded, probing.found.since(loaded.began)
        self._channel.log(
            f"{phase}: {loaded.rate_bps / 1e6:.2f} Mbit/s, {loaded.streams} streams, warm after {loaded.warm_up_s:.2f} s, "
            f"{loaded.slices} slices, spread {loaded.spread:.3f}, ended by {loaded.stopped_by}"
        )

    def _limits(self, phase: str, probes: Probes) -> Limits:
        order = self._order
        tallies = (self._endpoint.tally, self._beside.tally)
        carried, beside = (each.arrived_bytes if phase == "download" else each.delivered_bytes for each in tallies)
        share = order.max_bytes // 2 if order.download and order.upload else order.max_bytes
        light = order.light
        return Limits(
            longest_s=LONGEST_S / 2 if light else LONGEST_S,
            shortest_s=0.1 if light else 2.5,
            max_bytes=min(share, LIGHT_BYTES[phase]) if light else share,
            slice_s=0.005 if light else 0.05,
            first_streams=1 if light else 2,
            most_streams=1 if light else order.streams,
            silence_s=order.timeout_s,
            round_trip_s=self._idle.latency_s,
            added_s=lambda since: probes.since(since).added_s(self._idle.latency_s),
            carried=carried,
            beside=beside,
        )

    def _loss(self) -> dict[str, losses.Loss]:
        """Return what is known of lost packets: of a paced upload, and of echoes, both at once, for neither fills the line."""
        uploaded, udp = self._loads.get("upload"), self._service.udp
        pace_bps = losses.pace_bps(uploaded.rate_bps if uploaded else None)
        seconds = min(losses.LONGEST_S, RUN_S - (time.monotonic() - self._began))
        if seconds < losses.SHORTEST_S or not (uploaded or udp):
            return {}
        self._begin("loss")
        known: dict[str, losses.Loss | None] = {}
        echoing = self._loop.start(losses.of_echoes(self._endpoint, udp, pace_bps, seconds)) if udp else None
        if uploaded:
            try:
                known["paced"] = losses.of_paced_upload(self._loop, self._endpoint, self._service, pace_bps, seconds, self._segments())
            except Failed as failed:  # what was measured before stands
                self._channel.log(f"loss of a paced upload: {failed}")
        if echoing:
            while not echoing.done:
                self._loop.run(time.monotonic() + 0.1)
            known["echoes"] = echoing.result
            if echoing.problem or not echoing.result:
                self._channel.log(f"loss of echoes: {echoing.problem or 'none came back, or the line is too slow for them'}")
        return {name: loss for name, loss in known.items() if loss}

    def _segments(self) -> int:
        return losses.LIGHT_SEGMENTS if self._order.light else losses.SEGMENTS

    def _answer(self, lost: dict[str, losses.Loss]) -> dict[str, Any]:
        paced, echoes = lost.get("paced"), lost.get("echoes")
        found = paced or echoes
        answer: dict[str, Any] = {
            "latency_s": self._idle.latency_s,
            "jitter_s": self._idle.jitter_s,
            "packet_loss": found.share if found else None,
            "server": self._service.server,
            "client": self._service.client,
        }
        limits, sure, details = [], [], self._details(paced, echoes)
        for phase, loaded in self._loads.items():
            limit = limited_by(loaded, found, self._idle.latency_s)
            limits.append(limit)
            acknowledged = phase == "download" or loaded.stalled_share is not None
            sure.append(confidence(loaded, limit, acknowledged=acknowledged))
            answer |= rates_of(phase, loaded)
            details[phase] = {**told_of(loaded), "limited_by": limit}
        answer |= self._under_load(details)
        answer["limited_by"] = worst(limits, ("host", "loss", "line"))
        answer["confidence"] = worst(sure, ("underestimates", "indicative", "reliable"))
        tallies = (self._endpoint.tally, self._beside.tally)
        answer["download_bytes"] = sum(each.arrived_bytes() for each in tallies)
        answer["upload_bytes"] = sum(each.delivered_bytes() for each in tallies)
        return {**answer, "details": details}

    def _details(self, paced: losses.Loss | None, echoes: losses.Loss | None) -> dict[str, Any]:
        details: dict[str, Any] = {
            "backend": self._service.name,
            "address": str(self._endpoint.address[0]),
            "idle_round_trips": len(self._idle.round_trips_s),
            "connect_s": self._idle.connect_s,
            "congestion_control": self._endpoint.tally.congestion_control,
        }
        if self._idle.kernel_s:
            details["kernel_round_trip_s"] = self._idle.kernel_s
        if paced:
            details |= {"paced_segments": paced.sent, "paced_lost": paced.lost}
        if echoes:
            details |= {"echo_datagrams": echoes.sent, "echo_lost": echoes.lost}
        return details

    def _under_load(self, details: dict[str, Any]) -> dict[str, Any]:
        """Return latencies, responsiveness and grade under load: of two directions those of the worse one, so none where one has none."""
        told: dict[str, Any] = {}
        latencies_s: list[float] = []
        rates: list[float] = []
        for phase, probes in self._probes.items():
            latencies = probes.latencies_s()
            details[phase]["latency_probes"] = len(latencies)
            if latency_s := probes.latency_s():
                latencies_s.append(latency_s)
                told[f"{phase}_latency_s"] = latency_s
                details[phase]["latency_p95_s"] = sorted(latencies)[int(len(latencies) * 0.95)]
            if rate := probes.responsiveness_rpm():
                rates.append(rate)
                details[phase]["responsiveness_rpm"] = rate
        count = len(self._probes)
        if count and len(rates) == count:
            told["responsiveness_rpm"] = min(rates)
        if count and len(latencies_s) == count:
            told["bufferbloat_grade"] = grade(max(latencies_s) - self._idle.latency_s)
        return told


__all__ = ["Failed", "Run"]
