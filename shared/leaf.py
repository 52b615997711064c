"""The streams of a site that has a NATS server of its own, a leaf of the hub: how they and the hub's are kept in step.

The servers do it themselves, each stream from the other, and go on where they were when the line between them is back (NATS
calls the two directions mirrors and sources). At the leaf: the schedules as they are at the hub, and the ticks that people ask
for there. At the hub: the results, dead letters and signs of life of every leaf, in order, each once.

Each server has a JetStream domain: `hub`, and at a leaf the name of its site.
"""

from dataclasses import replace

from nats.js.api import ExternalStream, StreamConfig, StreamSource

from shared import subjects

HUB = "hub"
_UPWARDS = (subjects.RESULTS, subjects.DEAD, f"KV_{subjects.RUNNERS}")


def at_the_hub(stream: StreamConfig, leaves: tuple[str, ...]) -> StreamConfig:
    """Return what a stream is like at the hub of these leaves."""
    if stream.name not in _UPWARDS or not leaves:
        return stream
    return replace(stream, sources=[_from(leaf, stream.name) for leaf in sorted(set(leaves))])


def at_a_leaf(stream: StreamConfig, site: str) -> StreamConfig:
    """Return what a stream is like at the leaf of a site."""
    if stream.name == f"KV_{subjects.SCHEDULES}":
        return replace(stream, subjects=None, mirror=_from(HUB, stream.name), duplicate_window=0)
    if stream.name == subjects.TICKS:
        return replace(stream, sources=[_from(HUB, stream.name, subjects.manual_ticks_of(site))])
    return stream


def plainly(sources: list[StreamSource] | StreamSource | None) -> list[tuple[str, str, str]]:
    """Return where a stream comes from, to be compared: name, domain and filter."""
    each = sources if isinstance(sources, list) else [sources] if sources else []
    return sorted((source.name, source.external.api if source.external else "", source.filter_subject or "") for source in each)


def _from(domain: str, stream: str | None, only: str | None = None) -> StreamSource:
    return StreamSource(name=str(stream), external=ExternalStream(api=f"$JS.{domain}.API"), filter_subject=only)
