"""The API under fire: a schedule is as somebody wanted it or as it was before, never something in between."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.faults.ledger import Ledger
from tests.faults.scenario import RESTARTS_WITHIN_S, Scenario
from tests.faults.system import System, kill

WRITERS = 4
SITES = 200
"""So many sites that a schedule takes several kilobytes: half of one could be told."""


class Writer:
    """Somebody who creates, alters and removes one schedule as fast as the API takes it."""

    def __init__(self, api: str, number: int) -> None:
        self.name = f"load-{number}"
        self.confirmed = 0
        """How many changes were answered with success."""
        self.possible: list[dict[str, Any] | None] = [None]
        """What the schedule may be: as last confirmed, or as it was asked for since; None for one that is not there."""
        self._url = f"{api}/api/v1/schedules/{self.name}"
        self._version = 0

    async def write(self) -> None:
        """Change it for ever; what is asked while the API is dead fails, and may have happened."""
        async with httpx.AsyncClient(timeout=5) as client:
            while True:
                self._version += 1
                wanted = None if self._version % 10 == 0 else self._body()
                self.possible.append(wanted)
                try:
                    answer = await (client.put(self._url, json=wanted) if wanted else client.delete(self._url))
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if answer.is_success or answer.status_code == httpx.codes.NOT_FOUND:
                    self.confirmed += 1
                    self.possible = [wanted]

    def _body(self) -> dict[str, Any]:
        """Return a schedule whose parts all tell the version that they are of."""
        return {
            "engine": "noop",
            "sites": [f"site-{number}-{self._version}" for number in range(SITES)],
            "timing": {"kind": "interval", "every_s": 80_000, "phase_s": self._version},
            "start_within_s": 1 + self._version % 86_400,
        }


@pytest.mark.timeout(240)
@pytest.mark.scenario("the API killed 10 times while schedules are created, altered and deleted")
async def test_the_api_is_killed_while_schedules_change(system: System, ledger: Ledger, scenario: Scenario) -> None:
    """No schedule is half written, what was confirmed holds, and what runs does not notice."""
    await system.start("recorder", "runner", "scheduler")
    api = await system.start("api")
    await ledger.open("steady-1", "steady-2")
    writers = [Writer(api.url, number) for number in range(WRITERS)]
    writing = [asyncio.create_task(writer.write()) for writer in writers]
    for _ in range(10):
        confirmed = sum(writer.confirmed for writer in writers)
        await _more(writers, confirmed + 20)
        await kill(api)
        started = time.monotonic()
        await asyncio.to_thread(api.wait_until_ready)
        scenario.recovered(time.monotonic() - started, RESTARTS_WITHIN_S)
    for each in writing:
        each.cancel()
    await asyncio.wait(writing)
    async with httpx.AsyncClient() as client:
        listed = (await client.get(f"{api.url}/api/v1/schedules")).raise_for_status().json()
    assert not listed["invalid"]
    found = {each["name"]: each for each in listed["items"]}
    for writer in writers:
        assert _decided(found.get(writer.name)) in writer.possible
    scenario.remark(f"{sum(writer.confirmed for writer in writers)} changes confirmed")
    scenario.counted(await ledger.account())
    system.must_live()
    scenario.judge()


async def _more(writers: list[Writer], confirmed: int) -> None:
    end = time.monotonic() + 30
    while sum(writer.confirmed for writer in writers) < confirmed:
        assert time.monotonic() < end, "the API takes no changes"
        await asyncio.sleep(0.01)


def _decided(schedule: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a person decides about a schedule, of those fields that the writers give."""
    return schedule and {name: schedule[name] for name in ("engine", "sites", "timing", "start_within_s")}
