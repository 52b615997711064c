"""Options of engines, validated by the engines themselves: they are where the runners are."""

import json
from typing import Any

from services.api import fleet
from services.api.bus import Bus
from services.api.problems import NOT_VALID, ProblemError
from shared import subjects
from shared.errors import Unavailable
from shared.events import ANY
from shared.schedules import ScheduleSpec

SITES = 3
"""So many sites are asked at most: the same engine takes the same options everywhere."""


async def check(bus: Bus, spec: ScheduleSpec) -> None:
    """See whether a runner of a schedule accepts the options of its engines. Where none is there, or has the engine, none can say.

    Raises: ProblemError 422 with every field that is refused.
    """
    wrong = [(f"options.{field}".rstrip("."), reason) for field, reason in await _wrong(bus, spec, spec.engine, spec.options)]
    if spec.fallback:
        found = await _wrong(bus, spec, spec.fallback.engine, spec.fallback.options)
        wrong += [(f"fallback.options.{field}".rstrip("."), reason) for field, reason in found]
    if wrong:
        raise ProblemError(422, NOT_VALID, wrong)


async def _wrong(bus: Bus, spec: ScheduleSpec, engine: str, options: dict[str, Any]) -> list[tuple[str, str]]:
    for site in spec.sites[:SITES]:
        try:
            line = await _a_line(bus, site, engine) if spec.line == ANY else spec.line
            answer = await bus.ask(subjects.options(site, line, engine), json.dumps(options).encode(), f"runner of {site}", within_s=2)
        except Unavailable:
            continue
        return [(str(field), str(reason)) for field, reason in json.loads(answer.data)]
    return []


async def _a_line(bus: Bus, site: str, engine: str) -> str | None:
    """Return a line of a site whose runner has an engine: the options are the same for all of them."""
    lines = {runner.line for runner in await fleet.present(bus) if runner.site == site and engine in runner.engines}
    return min(lines, key=lambda line: line or "", default=None)
