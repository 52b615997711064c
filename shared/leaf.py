"""The streams of a site that has a NATS server of its own, a leaf of the hub: how they and the hub's are kept in step.

The servers do it themselves, each stream from the other, and go on where they were when the line between them is back (NATS
calls the two directions mirrors and sources). At the leaf: the schedules as they are at the hub, and the ticks that people ask
for there. At the hub: the results, dead letters and signs of life of every leaf, in order, each once.

Each server has a JetStream domain: `hub`, and at a leaf the name of its site.
"""

import asyncio
import contextlib
import json
import logging
from dataclasses import replace

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ExternalStream, StreamConfig, StreamConsumerSource, StreamSource
from nats.js.errors import APIError

from shared import subjects
from shared.connect import NATS_AWAY

log = logging.getLogger(__name__)

HUB = "hub"
SCHEDULES = f"KV_{subjects.SCHEDULES}"

_LOOK_EVERY_S = 5.0
_SILENT_S = 5.0
"""A source says every second that it is there."""


def at_the_hub(stream: StreamConfig, leaves: tuple[str, ...]) -> StreamConfig:
    """Return what a stream is like at the hub of these leaves: of each it takes what is the leaf's own to say, and nothing else."""
    if stream.name not in _UPWARDS or not leaves:
        return stream
    return replace(stream, sources=[_upwards(leaf, stream.name, _UPWARDS[stream.name]) for leaf in sorted(set(leaves))])


def at_a_leaf(stream: StreamConfig, site: str) -> StreamConfig:
    """Return what a stream is like at the leaf of a site."""
    if stream.name == SCHEDULES:
        return replace(stream, subjects=None, mirror=_downwards(site, stream.name), duplicate_window=0)
    if stream.name == subjects.TICKS:
        return replace(stream, sources=[_downwards(site, stream.name)])
    return stream


def consumers_of(leaf: str) -> list[tuple[str, ConsumerConfig]]:
    """Return the consumers, with their streams, by which the hub hands a leaf what it may have.

    The hub makes them: who can make a consumer can have it deliver anywhere.
    """
    return [_consumer(leaf, stream, only.format(leaf)) for stream, only in _DOWNWARDS.items()]


def leaves_of(results: StreamConfig) -> list[str]:
    """Return the sites whose servers are leaves, by what the stream of results is like."""
    return [source.external.api.split(".")[1] for source in results.sources or () if source.external]


async def can_be_reached(client: Client, leaf: str) -> bool:
    """Return whether the server of a leaf answers."""
    try:
        await client.request(f"$JS.{leaf}.API.INFO", b"", timeout=2)
    except NATS_AWAY:
        return False
    return True


async def keep_fetching(client: Client, js: JetStreamContext, leaves: tuple[str, ...]) -> None:
    """Fetch from a leaf again as soon as it can be reached again, for ever.

    The servers look for it by themselves, but after a long outage only every two minutes: nothing tells the account of the
    streams that a connection has come into that of the leaf.
    """
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        with contextlib.suppress(*NATS_AWAY):
            for stream in _UPWARDS:
                for leaf in await _silent(client, stream, leaves):
                    if await can_be_reached(client, leaf):
                        await _fetch_again(js, stream, leaf)
                        log.info("fetching from a leaf again", extra={"site": leaf, "stream": stream})


async def from_the_first(client: Client, site: str) -> None:
    """Ask the hub to hand a leaf all schedules: by itself a new server goes on after what the hub remembers of the one before.

    Raises: nats.errors.Error when the hub does not answer, NotFoundError when it knows nothing of this leaf.
    """
    answer = await client.request(f"$JS.{HUB}.API.CONSUMER.RESET.{SCHEDULES}.leaf-{site}", b'{"seq": 1}', timeout=5)
    if error := json.loads(answer.data).get("error"):
        APIError.from_error(error)


def plainly(sources: list[StreamSource] | StreamSource | None) -> list[tuple[str, str, str]]:
    """Return where a stream comes from, to be compared: name, domain and filter."""
    each = sources if isinstance(sources, list) else [sources] if sources else []
    return sorted((source.name, source.external.api if source.external else "", source.filter_subject or "") for source in each)


_UPWARDS = {
    subjects.RESULTS: "refresher.result.{}.*",
    subjects.DEAD: "refresher.dead.ticks",
    f"KV_{subjects.RUNNERS}": f"$KV.{subjects.RUNNERS}.{{}}.*",
}
_DOWNWARDS = {SCHEDULES: f"$KV.{subjects.SCHEDULES}.>", subjects.TICKS: "refresher.tick.{}.*.run.*"}


def _upwards(leaf: str, stream: str, only: str) -> StreamSource:
    external = ExternalStream(api=f"$JS.{leaf}.API", deliver=f"refresher-leaf.{leaf}.up.{stream}")
    return StreamSource(name=stream, external=external, filter_subject=only.format(leaf))


def _downwards(leaf: str, stream: str) -> StreamSource:
    consumer = StreamConsumerSource(name=f"leaf-{leaf}", deliver_subject=f"refresher-leaf.{leaf}.down.{stream}")
    return StreamSource(name=stream, external=ExternalStream(api=f"$JS.{HUB}.API"), consumer=consumer)


def _consumer(leaf: str, stream: str, only: str) -> tuple[str, ConsumerConfig]:
    return stream, ConsumerConfig(
        name=f"leaf-{leaf}",
        durable_name=f"leaf-{leaf}",
        deliver_subject=f"refresher-leaf.{leaf}.down.{stream}",
        filter_subject=only,
        ack_policy=AckPolicy.FLOW_CONTROL,
        max_deliver=-1,
        flow_control=True,
        idle_heartbeat=1,
    )


async def _silent(client: Client, stream: str, leaves: tuple[str, ...]) -> list[str]:
    """Return the leaves from which a stream fetches nothing now."""
    answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
    heard = {
        source["external"]["api"]
        for source in json.loads(answer.data).get("sources", ())
        if 0 <= source["active"] < _SILENT_S * 1e9  # -1 stands for never
    }
    return [leaf for leaf in leaves if f"$JS.{leaf}.API" not in heard]


async def _fetch_again(js: JetStreamContext, stream: str, leaf: str) -> None:
    """Take a leaf from the sources of a stream and put it back: it goes on after the last message that it has of it."""
    config = (await js.stream_info(stream)).config
    source = _upwards(leaf, stream, _UPWARDS[stream])
    others = [each for each in config.sources or [] if plainly(each) != plainly(source)]
    await js.update_stream(replace(config, sources=others))
    await js.update_stream(replace(config, sources=[*others, source]))
