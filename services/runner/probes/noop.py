"""The engine `noop`: measures nothing and succeeds. It shows that the way from schedule to row works, at no cost to the line."""

import asyncio
from typing import Annotated

from pydantic import Field

from services.runner.probes import Options, Report
from shared.events import Measurement


class NoopOptions(Options):
    """What the engine `noop` takes."""

    seconds: Annotated[float, Field(ge=0, le=600)] = 0
    """How long to pretend to measure, and to need the line for it."""

    @property
    def uses_line(self) -> bool:
        """Whether there is anything to pretend."""
        return self.seconds > 0


async def measure(options: NoopOptions, report: Report) -> Measurement:
    """Wait for the time asked and return a measurement without numbers."""
    if options.seconds:
        report("waiting", fraction=0)
        await asyncio.sleep(options.seconds)
    return Measurement()
