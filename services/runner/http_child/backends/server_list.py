"""A list of LibreSpeed servers, as its clients read it: `[{id, name, server, dlURL, ulURL, pingURL, getIpURL, sponsorName}]`."""

import contextlib
import time
from dataclasses import replace
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from services.runner.confined import Failed
from services.runner.http_child.address import Place, find, look_up
from services.runner.http_child.backends import fetch, librespeed, parsed, text
from services.runner.http_child.exchange import Request
from services.runner.http_child.latency import idle
from services.runner.http_child.order import Order
from services.runner.http_child.service import Service
from services.runner.http_child.tasks import Loop

MOST_SERVERS = 40
RACE_S = 2.0


def nearest(loop: Loop, url: str, order: Order) -> tuple[Place, Service]:
    """Return the server of a list whose latency is the lowest.

    Raises: Failed, `no_server` when none answers.
    """
    source, query = find(loop, url, order), urlsplit(url).query
    listed = parsed(loop.finish(fetch(source, Request("GET", (source.path or "/") + (f"?{query}" if query else ""), source.host))))
    if not isinstance(listed, list):
        raise Failed("bad_answer", f"{url[:200]} is no list of LibreSpeed servers")
    running = [
        (place, service, loop.start(idle(place.endpoint, service, 3))) for place, service in _usable(listed[:MOST_SERVERS], source, order)
    ]
    end = time.monotonic() + RACE_S
    while time.monotonic() < end and not all(task.done for _, _, task in running):
        loop.run(min(end, time.monotonic() + 0.02))
    for _, _, task in running:
        loop.stop(task)
    answered = [(task.result.latency_s, number) for number, (_, _, task) in enumerate(running) if task.result]
    if not answered:
        raise Failed("no_server", f"of the {len(listed)} servers that {url[:200]} lists, none answered within {RACE_S:g} s")
    place, service, _ = running[min(answered)[1]]
    client = loop.finish(librespeed.client(place, Request("GET", service.client["asked_at"], place.host, service.headers)))
    return place, replace(service, client=client)


def _usable(entries: list[Any], source: Place, order: Order) -> list[tuple[Place, Service]]:
    """Read entries side by side: a name that nobody resolves takes its resolver's patience, but none of the others'."""
    read: dict[int, tuple[Place, Service]] = {}

    def of(number: int, entry: Any) -> None:
        with contextlib.suppress(Failed, KeyError, TypeError, AttributeError):
            read[number] = _of(entry, source, order)

    threads = [Thread(target=of, args=each, daemon=True) for each in enumerate(entries)]
    end = time.monotonic() + RACE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    return [each for _, each in sorted(read.copy().items())]


def _of(entry: dict[str, Any], source: Place, order: Order) -> tuple[Place, Service]:
    """Read an entry.

    Raises: Failed when its address cannot be used; KeyError, TypeError or AttributeError when it is none.
    """
    address = str(entry["server"])
    if address.startswith("//"):  # the scheme of the list
        address = source.url.split(":", 1)[0] + ":" + address
    place = look_up(address, order)
    headers = librespeed.headers(order)
    service = Service(
        name="librespeed",
        ping=Request("GET", place.at(str(entry["pingURL"])), place.host, headers),
        download=Request("GET", place.at(f"{entry['dlURL']}?ckSize={librespeed.MEBIBYTES}"), place.host, headers),
        upload_target=place.at(str(entry["ulURL"])),
        upload_bytes=librespeed.UPLOAD_BYTES,
        server={
            "id": text(entry.get("id")),
            "name": text(entry.get("name")),
            "sponsor": text(entry.get("sponsorName")),
            "url": place.url,
            "host": place.host,
        },
        client={"asked_at": place.at(f"{entry.get('getIpURL', '')}?isp=true")},
        headers=headers,
    )
    return place, service
