"""LibreSpeed's backend (github.com/librespeed/speedtest), and Refresher's own test server, which speaks the same.

`garbage` answers with as many MiB as `ckSize` asks for, `empty` takes uploads and answers pings, `getIP` says who asks.
"""

from typing import Any

from services.runner.confined import Failed
from services.runner.http_child.address import Place
from services.runner.http_child.backends import fetch, parsed, status, text
from services.runner.http_child.exchange import Request
from services.runner.http_child.order import Order
from services.runner.http_child.service import Service, Udp
from services.runner.http_child.tasks import Steps

MEBIBYTES = 1_024
"""The most that a backend gives at once: then no stream has to ask again."""
OWN_UPLOAD_BYTES = 8 * 2**30
UPLOAD_BYTES = 20 * 2**20
"""As LibreSpeed's own page uploads: what a server set up for it takes."""
PATHS = (("garbage.php", "empty.php", "getIP.php"), ("garbage", "empty", "getIP"))
FOLDERS = ("", "backend/")


def find(place: Place, order: Order) -> Steps[Service]:
    """Return what the server offers, wherever under its address the backend lies.

    Raises: Failed: `bad_answer` when there is no backend, or as its answers are.
    """
    shown = headers(order)
    own = yield from _own(place, shown)
    for folder in FOLDERS:
        for garbage, empty, who in reversed(PATHS) if own else PATHS:
            ping = Request("GET", place.at(folder + empty), place.host, shown)
            code, body = yield from status(place, ping)
            if code == 200 and not body:
                who_asks = yield from client(place, Request("GET", place.at(f"{folder}{who}?isp=true"), place.host, shown))
                return Service(
                    name="refresher" if own else "librespeed",
                    ping=ping,
                    download=Request("GET", place.at(f"{folder}{garbage}?ckSize={MEBIBYTES}"), place.host, shown),
                    upload_target=place.at(folder + empty),
                    upload_bytes=OWN_UPLOAD_BYTES if own else UPLOAD_BYTES,
                    server={"url": place.url, "host": place.host, "name": text((own or {}).get("name"))},
                    client=who_asks,
                    headers=shown,
                    udp=_udp((own or {}).get("udp")),
                )
    raise Failed("bad_answer", f"{place.url} has no LibreSpeed backend: neither {PATHS[0][1]} nor {FOLDERS[1]}{PATHS[0][1]} answers a ping")


def headers(order: Order) -> tuple[tuple[str, str], ...]:
    """Return what every request shows besides its own."""
    return (("Authorization", f"Bearer {order.token}"),) if order.token else ()


def _own(place: Place, headers: tuple[tuple[str, str], ...]) -> Steps[dict[str, Any] | None]:
    """Return what Refresher's own test server says of itself; None for another server."""
    code, body = yield from status(place, Request("GET", "/.well-known/refresher", place.host, headers))
    told = parsed(body) if code == 200 else None
    return told if isinstance(told, dict) and told.get("name") == "refresher testserver" else None


def _udp(told: object) -> Udp | None:
    try:
        udp = Udp(int(told["port"]), bytes.fromhex(told["token"]), int(told["datagrams"]), float(told["seconds"]))  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return None
    return udp if 0 < udp.port < 65_536 and len(udp.token) == 16 else None


def client(place: Place, request: Request) -> Steps[dict[str, Any]]:
    """Return what the server knows of us; a server without that service still serves.

    So does one that does not answer in time: LibreSpeed's asks ipinfo.io first, and waits for it even where there is no way out.
    """
    try:
        told = parsed((yield from fetch(place, request)))
    except Failed as failed:
        if failed.kind in {"rate_limited", "blocked", "unreachable", "line_down"}:
            raise
        return {}
    if not isinstance(told, dict):
        return {}
    known = told.get("rawIspInfo")  # an object or ""
    known = known if isinstance(known, dict) else {}
    words = str(told.get("processedString", "")).split(" - ", 1)
    isp = known.get("org") or known.get("as_name") or (words[1].split(",")[0] if len(words) > 1 else None)
    return {"address": text(words[0]), "isp": text(isp), "country_code": text(known.get("country"))}
