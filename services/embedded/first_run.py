"""What happens the first time: one schedule, and one run of it at once, so that there is something to see."""

import asyncio
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from typing import Any

SCHEDULE = "hourly"
GIVE_UP_AFTER_S = 180.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback is never behind the proxy that the environment may name for the tests."""


def request(url: str, body: dict[str, Any] | None = None) -> Any:
    """Get JSON from the API, or post some.

    Raises: urllib.error.URLError, or HTTPError when the API refuses.
    """
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - our own API
    with _OPENER.open(asked, timeout=10) as answer:
        return json.load(answer)


def set_up(api_url: str) -> str | None:
    """Create the hourly schedule, unless there is any already, run it once, and return the id of that run."""
    if request(f"{api_url}/api/v1/schedules")["items"]:
        return None
    site = os.environ.get("REFRESHER_SITE", "home")
    # the spread by name would be the same minute in every home, since all have these names
    timing = {"kind": "interval", "every_s": 3600, "phase_s": 360 + secrets.randbelow(2880)}
    spec = {"name": SCHEDULE, "engine": "speedtest", "sites": [site], "timing": timing}
    request(f"{api_url}/api/v1/schedules", spec)
    return str(request(f"{api_url}/api/v1/runs", {"schedule": SCHEDULE})["run_id"])


async def outcome(api_url: str, run_id: str) -> str:
    """Wait for a run to end and return what came of it, in a sentence."""
    end = time.monotonic() + GIVE_UP_AFTER_S
    while time.monotonic() < end:
        try:
            result = await asyncio.to_thread(request, f"{api_url}/api/v1/results/{run_id}")
        except urllib.error.URLError:  # not there yet (404), or the API is being restarted
            await asyncio.sleep(0.5)
            continue
        if result["failure"]:
            return f"the first test failed ({result['failure']['kind']}): {result['failure']['message']}"
        return f"the first test: {describe(result)}"
    return f"the first test has not ended after {GIVE_UP_AFTER_S:.0f} s: see the log of the runner"


def describe(result: dict[str, Any]) -> str:
    """Return what was measured, for people."""
    parts = [f"{result[name] / 1e6:.1f} Mbit/s {way}" for name, way in (("download_bps", "down"), ("upload_bps", "up")) if result[name]]
    if result["latency_s"]:
        parts.append(f"{result['latency_s'] * 1e3:.1f} ms")
    if result["server"]:
        parts.append(f"to {result['server']['sponsor'] or result['server']['host']}")
    return ", ".join(parts) or "succeeded"


def scheduled(api_url: str) -> list[str]:
    """Return one line for every schedule."""
    lines = []
    for schedule in request(f"{api_url}/api/v1/schedules")["items"]:
        timing = schedule["timing"]
        told = {
            "interval": "every {every_s} s",
            "cron": "at {expression} ({zone})",
            "random": "every {mean_s} s on average",
            "once": "at {at}",
        }
        when = told.get(timing["kind"], "when asked to").format(**timing)
        following = f", next at {schedule['next_due_at']}" if schedule["next_due_at"] else "" if schedule["enabled"] else ", paused"
        lines.append(f"{schedule['name']}: {schedule['engine']} at {', '.join(schedule['sites'])} {when}{following}")
    return lines
