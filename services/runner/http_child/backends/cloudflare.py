"""Cloudflare's speed test: `__down?bytes=N`, `__up`, and `/cdn-cgi/trace`, which says who asks and who answers."""

import re

from services.runner.http_child.address import Place
from services.runner.http_child.backends import fetch, text
from services.runner.http_child.exchange import Answer, Request
from services.runner.http_child.order import Order
from services.runner.http_child.service import Service
from services.runner.http_child.tasks import Steps

SERVER = "https://speed.cloudflare.com"
DOWNLOAD_BYTES = 99_000_000
"""For 100 MB and more it asks for a `Referer` of its own page."""
UPLOAD_BYTES = 50_000_000
"""The largest that its own page uploads."""


def find(place: Place, order: Order) -> Steps[Service]:
    """Return what Cloudflare offers.

    Raises: Failed.
    """
    del order
    trace = yield from fetch(place, Request("GET", "/cdn-cgi/trace", place.host))
    told = dict(re.findall(r"^(\w+)=(.*)$", trace[:8_192].decode("utf-8", "replace"), re.MULTILINE))
    return Service(
        name="cloudflare",
        ping=Request("GET", place.at("__down?bytes=0"), place.host),
        download=Request("GET", place.at(f"__down?bytes={DOWNLOAD_BYTES}"), place.host),
        upload_target=place.at("__up"),
        upload_bytes=UPLOAD_BYTES,
        server={
            "url": place.url,
            "host": place.host,
            "sponsor": "Cloudflare",
            "id": text(told.get("colo")),
            "name": text(told.get("colo")),
        },
        client={"address": text(told.get("ip")), "country_code": text(told.get("loc"))},
        answering_s=answering_s,
    )


def answering_s(answer: Answer) -> float:
    """Return how long the server says that it took (`Server-Timing: cfRequestDuration;dur=` in milliseconds), at most a second."""
    found = re.search(r"cfRequestDuration;dur=(\d{1,4}(\.\d+)?)", answer.headers.get("server-timing", ""))
    return min(1.0, float(found[1]) / 1_000) if found else 0
