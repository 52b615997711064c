"""The engine `connectivity`: whether the line reaches the internet, at a few kB per run, for schedules seconds apart.

Each target is looked for at once: its name is resolved, a TCP connection opened, and for http(s) the status asked for. One that
does not answer is said in the details; the run fails when none does, or when names alone are the trouble.
"""

import asyncio
import socket
from collections.abc import Sequence
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from statistics import median
from typing import Annotated

import dns.resolver
from pydantic import Field

from services.runner.probes import Options, Report
from services.runner.reachability import Check, ResolverText, TargetText, check, is_named, resolver_at
from shared.errors import ProbeError
from shared.events import Measurement

TARGETS = (
    "tcp://1.1.1.1:443",
    "tcp://9.9.9.9:443",
    "http://connectivitycheck.gstatic.com/generate_204",
    "http://cp.cloudflare.com/generate_204",
)
"""Of three operators, so that one of them down is not the line down. Two addresses, which answer without any name being resolved:
the anycast resolvers of Cloudflare and Quad9. Two pages that their makers keep for this very question, asked of them by phones and
browsers all the time: they need no account and answer without a body. They are plain http, so that a hot spot's login page shows."""


class ConnectivityOptions(Options):
    """What the engine `connectivity` takes."""

    targets: Annotated[tuple[TargetText, ...], Field(min_length=1, max_length=16)] = TARGETS
    """What to look for: `tcp://host:port`, `http://host/path`, `https://host/path`. With one address at least, names that do not
    resolve are told from a line that is down; with two operators at least, one of them from the line."""
    timeout_s: Annotated[float, Field(ge=0.1, le=30)] = 3
    """How long one target may take, and so the run."""
    resolver: ResolverText | None = None
    """The DNS server to ask, as `address` or `address:port`; by default those that the system asks."""
    source_address: IPv4Address | IPv6Address | None = None
    """The address of this machine to measure from: chooses the line where there are two."""


async def measure(options: ConnectivityOptions, report: Report) -> Measurement:
    """Look for every target; the latency is the median time of a TCP connection to those that answered.

    Raises: ProbeError of the kinds `line_down`, `dns_down`, `redirected`, `bad_answer`, `misconfigured`.
    """
    report("connecting")
    _must_be_ours(options.source_address)
    try:
        resolver = resolver_at(options.resolver, options.timeout_s)
    except dns.resolver.NoResolverConfiguration:
        raise ProbeError("misconfigured", "the system names no DNS server (/etc/resolv.conf): set the option resolver") from None
    looked = (check(target, resolver, options.timeout_s, options.source_address) for target in options.targets)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in looked]
    return judged([task.result() for task in tasks])


def judged(checks: Sequence[Check]) -> Measurement:
    """Return the measurement that the checks of all targets are.

    Raises: ProbeError; see `measure`.
    """
    engine_version = f"refresher {version('refresher')}"
    reached = [each for each in checks if each.problem is None]
    unnamed = [each for each in reached if not is_named(each.target)]
    nameless = [each for each in checks if is_named(each.target)]
    if nameless and all(each.problem == "dns" for each in nameless) and unnamed:
        reached_by_address = ", ".join(each.target for each in unnamed)
        raise ProbeError(
            "dns_down", f"no name resolves, but {reached_by_address} answers: {_reasons(nameless)}", engine_version=engine_version
        )
    if not reached:
        raise ProbeError(_kind(checks), f"none of {len(checks)} targets is reachable: {_reasons(checks)}", engine_version=engine_version)
    return Measurement(
        latency_s=median(each.connect_s for each in reached if each.connect_s is not None),
        engine_version=engine_version,
        details={"reachable": len(reached), "targets": [each.details() for each in checks]},
    )


def _kind(checks: Sequence[Check]) -> str:
    """Return what it means that no target is reachable: what answers wrongly shows that the line carries."""
    for kind in ("redirected", "bad_answer"):
        if any(each.problem == kind for each in checks):
            return kind
    return "line_down"


def _reasons(checks: Sequence[Check]) -> str:
    return "; ".join(f"{each.target}: {each.reason}" for each in checks)


def _must_be_ours(address: IPv4Address | IPv6Address | None) -> None:
    if address is None:
        return
    try:
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        raise ProbeError("misconfigured", f"source_address {address} is not an address of this machine: {error}") from None
