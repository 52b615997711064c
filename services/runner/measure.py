"""From a tick to its result: choose the engine, measure, and turn whatever happens into one result."""

import asyncio
import re
import traceback
from datetime import UTC, datetime

from services.runner.probes import Report, load
from shared.errors import ConfigurationError, ProbeError
from shared.events import Failure, Measurement, Result, Status, Tick

LARGEST_RESULT = 512 * 1024
"""In bytes; the server refuses messages over 1 MiB."""


async def measure(tick: Tick, runner: str, attempt: int, report: Report) -> Result:
    """Run the engine that a tick asks for and return the result, a failed one included.

    Raises: asyncio.CancelledError when cancelled; the engine has stopped then.
    """
    started_at = datetime.now(UTC)
    if started_at >= tick.expires_at:
        late = Failure(kind="expired", message=f"no runner could start it before {tick.expires_at:%Y-%m-%d %H:%M:%S} UTC")
        return _result(tick, runner, attempt, None, late)
    log, version = "", None
    try:
        measurement = await load(tick.engine).run(tick.options, report)
        outcome: Measurement | Failure = measurement.model_copy(update={"log": "", "engine_version": None})
        log, version = measurement.log, measurement.engine_version
    except ProbeError as error:
        outcome, log, version = _failure(error.kind, error.message), error.log, error.engine_version
    except ConfigurationError as error:
        outcome = _failure("misconfigured", str(error))
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        outcome = _failure("crashed", f"engine {tick.engine} has a bug: it cancelled itself")
    except Exception as error:  # noqa: BLE001 - an engine may be anybody's: its bug is this run's failure, not the runner's
        outcome = _failure("crashed", f"engine {tick.engine} has a bug: {type(error).__name__}: {error}")
        log = traceback.format_exc()
    try:
        result = _result(tick, runner, attempt, started_at, outcome, log, version)
        _must_be_storable(result)
    except (ValueError, TypeError, RecursionError) as error:
        wrong = _failure("crashed", f"engine {tick.engine} returned what cannot be kept: {error}")
        return _result(tick, runner, attempt, started_at, wrong)
    if (size := len(result.to_json())) > LARGEST_RESULT:
        too_large = _failure("too_large", f"engine {tick.engine} returned {size} bytes; at most {LARGEST_RESULT} can be kept")
        return _result(tick, runner, attempt, started_at, too_large)
    return result


def _failure(kind: str, message: str) -> Failure:
    """Return a failure with whatever an engine said, made storable."""
    known = kind if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", kind) else "crashed"
    return Failure(kind=known, message=_storable(message)[:4_000] or known)


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "")


def _must_be_storable(result: Result) -> None:
    """Raise ValueError for a result that the recorder or Postgres would refuse: here it can still become a failed one."""
    Result.model_validate_json(result.to_json())
    if result.measurement and _holds_nul(result.measurement.details):
        raise ValueError("its details hold a NUL character")


def _holds_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_nul(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return any(map(_holds_nul, value))
    return isinstance(value, str) and "\x00" in value


def _result(
    tick: Tick,
    runner: str,
    attempt: int,
    started_at: datetime | None,
    outcome: Measurement | Failure,
    log: str = "",
    version: str | None = None,
) -> Result:
    measurement, failure = (outcome, None) if isinstance(outcome, Measurement) else (None, outcome)
    return Result(
        **tick.model_dump(include={"run_id", "site", "schedule", "trigger", "engine", "due_at"}),
        status=Status.SUCCEEDED if measurement else Status.FAILED if started_at else Status.MISSED,
        runner=runner,
        attempt=attempt,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        engine_version=_storable(version)[:1_000] if version else None,
        measurement=measurement,
        failure=failure,
        log=_storable(log)[-8_000:],
    )
