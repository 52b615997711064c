"""The API: it answers, and is ready."""

import httpx

from services.cli import target
from services.cli.api import way_to
from services.cli.checks import Finding, reason


async def check() -> Finding:
    """Return what is found about the API."""
    url = target.api_url()
    try:
        async with httpx.AsyncClient(timeout=10, **way_to(url)) as client:
            answer = await client.get(f"{url}/health/ready")
            down = answer.json()["down"]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = "start it: refresher run api (`refresher up` starts all), or set REFRESHER_API_URL to where it runs"
        return Finding("api", "failed", f"{url} does not answer: {reason(error)}", advice)
    except (ValueError, TypeError, KeyError):
        return Finding("api", "failed", f"what answers at {url} is not Refresher's API", "check REFRESHER_API_URL")
    if down:
        told = "; ".join(f"{name}: {why}" for name, why in down.items())
        return Finding("api", "failed", f"{url} is not ready: {told}", "see the findings above")
    return Finding("api", "ok", f"ready at {url}")
