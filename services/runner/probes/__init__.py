"""The engines: each is one async callable in one file of this folder, registered on one line below.

An engine takes its options and a `Report` to call with its progress, and returns a `Measurement` or raises `ProbeError`.
The annotation of its first parameter, a pydantic model, says which options it takes: they are validated before it is called.
Cancelling it must stop it and leave no process behind. Other people's packages add engines through the entry-point
group `refresher.probes`, in the same form as the lines below.
"""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import ConfigurationError, ProbeError
from shared.events import Measurement

GROUP = "refresher.probes"
BUILT_IN = {
    "connectivity": "services.runner.probes.connectivity:measure",
    "http": "services.runner.probes.http:measure",
    "iperf3": "services.runner.probes.iperf3:measure",
    "ndt7": "services.runner.probes.ndt7:measure",
    "noop": "services.runner.probes.noop:measure",
    "ookla": "services.runner.probes.ookla:measure",
    "speedtest": "services.runner.probes.speedtest:measure",
}

Report = Callable[..., None]
"""Call it as `report(phase, fraction=None, rate_bps=None)` as often as you like: it never blocks and sends a few a second."""


class Options(BaseModel):
    """The base of every engine's options: unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def uses_line(self) -> bool:
        """Whether a run takes its turn on the line: what neither loads it nor minds that something else does need not."""
        return True


@dataclass(frozen=True)
class Probe:
    """An engine, ready to be called."""

    name: str
    measure: Callable[[Any, Report], Awaitable[Measurement]]
    options: type[BaseModel]

    async def run(self, options: dict[str, Any], report: Report) -> Measurement:
        """Validate the options and measure.

        Raises: ProbeError, `misconfigured` when an option is wrong.
        """
        try:
            validated = self.options.model_validate(options)
        except ValidationError as error:
            reasons = "; ".join(f"{field or 'options'}: {reason}" for field, reason in _reasons(error))
            raise ProbeError("misconfigured", f"engine {self.name} refuses its options: {reasons}") from None
        return await self.measure(validated, report)

    def uses_line(self, options: dict[str, Any]) -> bool:
        """Return whether a run with these options takes its turn on the line; so does one that will be refused."""
        try:
            validated = self.options.model_validate(options)
        except ValidationError:
            return True
        return not isinstance(validated, Options) or validated.uses_line

    def wrong(self, options: dict[str, Any]) -> list[tuple[str, str]]:
        """Return what is wrong with options: the path of each field, and the reason."""
        try:
            self.options.model_validate(options)
        except ValidationError as error:
            return _reasons(error)
        return []


def _reasons(error: ValidationError) -> list[tuple[str, str]]:
    return [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]


def names() -> list[str]:
    """Return the names of all engines here, without importing them."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


@cache
def load(name: str) -> Probe:
    """Import an engine, once; a built-in one wins over another package's of the same name.

    Raises: ProbeError `no_engine` when there is none of this name, ConfigurationError when it is not an engine.
    """
    found = [EntryPoint(name, BUILT_IN[name], GROUP)] if name in BUILT_IN else list(entry_points(group=GROUP, name=name))
    if not found:
        raise ProbeError("no_engine", f"this runner has no engine {name!r}; it has {', '.join(names())}")
    try:
        measure = found[0].load()
        options = next(iter(inspect.signature(measure, eval_str=True).parameters.values())).annotation
        is_model = issubclass(options, BaseModel)
    except (ImportError, AttributeError, NameError, TypeError, StopIteration) as error:
        raise ConfigurationError(f"{found[0].value} is not an engine: {error}") from error
    if not is_model:
        raise ConfigurationError(f"{found[0].value} is not an engine: its first parameter is no pydantic model but {options!r}")
    return Probe(name, measure, options)
