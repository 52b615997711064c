"""From a tick to its result: choose the engine, measure, and turn whatever happens into one result."""

import asyncio
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.runner.probes import Report, load
from shared.errors import ConfigurationError, ProbeError
from shared.events import ANY, Failure, Measurement, Result, Status, Tick

LARGEST_RESULT = 512 * 1024
"""In bytes; the server refuses messages over 1 MiB."""


def uses_line(tick: Tick) -> bool:
    """Return whether a run takes its turn on the line, be it for its fallback; so does one that every line of the site waits to measure."""
    asked = [(tick.engine, tick.options), *([(tick.fallback.engine, tick.fallback.options)] if tick.fallback else [])]
    return tick.line == ANY or any(_uses_line(engine, options) for engine, options in asked)


def _uses_line(engine: str, options: dict[str, Any]) -> bool:
    try:
        return load(engine).uses_line(options)
    except (ProbeError, ConfigurationError):  # its result will say so
        return True


async def measure(tick: Tick, runner: str, attempt: int, report: Report, labels: Sequence[str] = ()) -> Result:
    """Run the engine that a tick asks for, or its fallback, and return the result, a failed one included.

    `labels` are what this runner has of those that the tick may ask for.
    Raises: asyncio.CancelledError when cancelled; the engine has stopped then.
    """
    started_at = datetime.now(UTC)
    if started_at >= tick.expires_at:
        late = Failure(kind="expired", message=f"no runner could start it before {tick.expires_at:%Y-%m-%d %H:%M:%S} UTC")
        return not_run(tick, runner, attempt, Status.MISSED, late)
    if missing := sorted(set(tick.labels) - set(labels)):
        who = f"no line of site {tick.site} that is there has" if tick.line == ANY else "the runner of this line lacks"
        reason = f"{who} the label {missing[0]!r}; REFRESHER_LABELS gives it"
        return not_run(tick, runner, attempt, Status.FAILED, Failure(kind="no_label", message=reason))
    run = _Run(tick, runner, attempt, started_at)
    first = await run.of(tick.engine, tick.options, report)
    if first.failure is None or tick.fallback is None:
        return first
    second = await run.of(tick.fallback.engine, tick.fallback.options, report)
    told = f"{first.failure.kind}: {first.failure.message}"
    if second.failure is None:
        return second.model_copy(update={"fallback_for": tick.engine, "log": f"{tick.engine} failed: {told}\n{second.log}"[:8_000]})
    both = f"{told}; the fallback {tick.fallback.engine} failed too: {second.failure.kind}: {second.failure.message}"
    return first.model_copy(update={"failure": _failure(first.failure.kind, both), "finished_at": second.finished_at})


def not_run(tick: Tick, runner: str, attempt: int, status: Status, failure: Failure) -> Result:
    """Return the result of a run that no engine was started for."""
    return _result(tick, runner, attempt, None, status, failure)


@dataclass(frozen=True)
class _Run:
    tick: Tick
    runner: str
    attempt: int
    started_at: datetime

    async def of(self, engine: str, options: dict[str, Any], report: Report) -> Result:
        """Run an engine and turn whatever happens into a result."""
        log, version = "", None
        try:
            measurement = await load(engine).run(options, report)
            outcome: Measurement | Failure = measurement.model_copy(update={"log": "", "engine_version": None})
            log, version = measurement.log, measurement.engine_version
        except ProbeError as error:
            outcome, log, version = _failure(error.kind, error.message), error.log, error.engine_version
        except ConfigurationError as error:
            outcome = _failure("misconfigured", str(error))
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            outcome = _failure("crashed", f"engine {engine} has a bug: it cancelled itself")
        except Exception as error:  # noqa: BLE001 - an engine may be anybody's: its bug is this run's failure, not the runner's
            outcome = _failure("crashed", f"engine {engine} has a bug: {type(error).__name__}: {error}")
            log = traceback.format_exc()
        try:
            result = self._ended(engine, outcome, log, version)
            size = _size_as_stored(result)
        except (ValueError, TypeError, RecursionError) as error:
            return self._ended(engine, _failure("crashed", f"engine {engine} returned what cannot be kept: {error}"))
        if size > LARGEST_RESULT:
            reason = f"engine {engine} returned {size} bytes; at most {LARGEST_RESULT} can be kept"
            return self._ended(engine, _failure("too_large", reason))
        return result

    def _ended(self, engine: str, outcome: Measurement | Failure, log: str = "", version: str | None = None) -> Result:
        status = Status.SUCCEEDED if isinstance(outcome, Measurement) else Status.FAILED
        told = {"engine": engine, "engine_version": _storable(version)[:1_000] if version else None, "log": _storable(log)[-8_000:]}
        return _result(self.tick, self.runner, self.attempt, self.started_at, status, outcome, **told)


def _failure(kind: str, message: str) -> Failure:
    """Return a failure with whatever an engine said, made storable."""
    known = kind if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", kind) else "crashed"
    return Failure(kind=known, message=_storable(message)[:4_000] or known)


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "")


def _size_as_stored(result: Result) -> int:
    """Return how many bytes a result takes.

    Raises: ValueError for one that the recorder or Postgres would refuse: here it can still become a failed one.
    """
    as_json = result.to_json()
    Result.model_validate_json(as_json)
    if result.measurement and _holds_nul(result.measurement.details):
        raise ValueError("its details hold a NUL character")
    return len(as_json)


def _holds_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_nul(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return any(map(_holds_nul, value))
    return isinstance(value, str) and "\x00" in value


def _result(
    tick: Tick, runner: str, attempt: int, started_at: datetime | None, status: Status, outcome: Measurement | Failure, **told: Any
) -> Result:
    known = {name: getattr(tick, name) for name in ("run_id", "site", "schedule", "trigger", "engine", "due_at", "start_at", "line")}
    return Result(
        **{**known, **told},
        status=status,
        runner=runner,
        attempt=attempt,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        measurement=outcome if isinstance(outcome, Measurement) else None,
        failure=outcome if isinstance(outcome, Failure) else None,
    )
