"""Whatever an engine does, a tick becomes one result."""

import asyncio
import sys
import types
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.runner import probes
from services.runner.measure import LARGEST_RESULT, measure, uses_line
from services.runner.probes import Options, Report
from shared.errors import ConfigurationError, ProbeError
from shared.events import Failure, Measurement, Result, Status, Tick


def silent(*_: Any, **__: Any) -> None:
    """Take progress and drop it."""


async def outcome(monkeypatch: pytest.MonkeyPatch, engine: Any, **fields: Any) -> Result:
    """Run a tick with this engine."""
    module = types.ModuleType("engine_of_this_test")
    module.engine = engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(probes.BUILT_IN, "mine", f"{module.__name__}:engine")
    probes.load.cache_clear()
    now = datetime.now(UTC)
    tick = {"run_id": uuid4(), "site": "home", "trigger": "manual", "engine": "mine", "due_at": now, "published_at": now}
    return await measure(Tick(**{**tick, "expires_at": now + timedelta(hours=1), **fields}), "runner-1", 1, silent)


class Nothing(Options):
    """No options."""


async def test_a_measurement_is_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's log and version are the run's."""

    async def engine(options: Nothing, report: Report) -> Measurement:
        report("download", 0.5)
        return Measurement(download_bps=1.5, log="said", engine_version="1.0")

    result = await outcome(monkeypatch, engine)
    assert (result.status, result.log, result.engine_version) == (Status.SUCCEEDED, "said", "1.0")
    assert result.measurement == Measurement(download_bps=1.5)


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (ProbeError("rate_limited", "rate limited: try later", log="429"), "rate_limited", "rate limited"),
        (ProbeError("bad_answer", "it said \x00"), "bad_answer", "it said"),
        (ConfigurationError("no binary"), "misconfigured", "no binary"),
        (ZeroDivisionError("division by zero"), "crashed", "ZeroDivisionError"),
        (RecursionError(), "crashed", "RecursionError"),
        (MemoryError(), "crashed", "MemoryError"),
    ],
)
async def test_an_error_is_a_failed_result(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, told: str) -> None:
    """Told by the engine or a bug of its: the reason is recorded, and the runner lives."""

    async def engine(options: Nothing, report: Report) -> Measurement:
        raise error

    result = await outcome(monkeypatch, engine)
    assert (result.status, result.measurement) == (Status.FAILED, None)
    assert result.failure
    assert result.failure.kind == kind
    assert told in result.failure.message
    Result.model_validate_json(result.to_json())


async def test_an_answer_too_large_for_the_bus_is_a_failed_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could never be published: said so instead of trying for ever."""

    async def engine(options: Nothing, report: Report) -> Measurement:
        return Measurement(details={"all": "x" * LARGEST_RESULT})

    result = await outcome(monkeypatch, engine)
    assert result.failure
    assert result.failure.kind == "too_large"


async def test_a_cancelled_run_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that stops hands the tick back; it does not record a failure of the line."""
    started = asyncio.Event()

    async def engine(options: Nothing, report: Report) -> Measurement:
        started.set()
        await asyncio.sleep(60)
        return Measurement()

    running = asyncio.create_task(outcome(monkeypatch, engine))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_an_engine_that_cancels_itself_has_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody told the runner to stop: the run has ended, and its tick is not handed back again and again."""

    async def engine(options: Nothing, report: Report) -> Measurement:
        raise asyncio.CancelledError

    result = await outcome(monkeypatch, engine)
    assert result.failure
    assert result.failure.kind == "crashed"


DEEP: dict[str, Any] = {}
for _ in range(400):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    "returned",
    [
        Measurement(details={"banner": "a\x00b"}),
        Measurement(details={"a\x00b": 1}),
        Measurement(details={"lone": "\ud800"}),
        Measurement(details={"object": object()}),
        Measurement(details=DEEP),
        Measurement().model_copy(update={"latency_s": -1}),
        None,
    ],
)
async def test_what_an_engine_returns_and_nobody_could_store_is_a_failed_result(monkeypatch: pytest.MonkeyPatch, returned: Any) -> None:
    """Refused by the recorder it would leave no row, and raised in the runner no result: here it still becomes one."""

    async def engine(options: Nothing, report: Report) -> Measurement:
        return returned  # type: ignore[no-any-return]

    result = await outcome(monkeypatch, engine)
    assert result.failure
    assert result.failure.kind == "crashed"
    Result.model_validate_json(result.to_json())


async def test_an_engine_may_say_anything_in_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that is none, half a character, a version as long as a book: made storable."""

    async def engine(options: Nothing, report: Report) -> Measurement:
        raise ProbeError("DNS failure", "it said \ud800", log="\ud800\x00", engine_version="v" * 5_000)

    result = await outcome(monkeypatch, engine)
    assert result.failure
    assert result.failure.kind == "crashed"
    Result.model_validate_json(result.to_json())


async def test_what_is_no_engine_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function without options, or a module that is not there."""

    async def engine(options: dict[str, Any], report: Report) -> Measurement:
        raise NotImplementedError

    result = await outcome(monkeypatch, engine)
    assert result.failure
    assert result.failure == Failure(kind="misconfigured", message=result.failure.message)
    assert "pydantic model" in result.failure.message


@pytest.mark.parametrize(
    ("asked", "uses"),
    [
        ({"engine": "noop"}, False),
        ({"engine": "noop", "options": {"seconds": 1}}, True),
        ({"engine": "noop", "options": {"second": 1}}, True),
        ({"engine": "connectivity"}, True),
        ({"engine": "teleport"}, True),
        ({"engine": "noop", "fallback": {"engine": "noop"}}, False),
        ({"engine": "noop", "fallback": {"engine": "connectivity"}}, True),
        ({"engine": "noop", "line": "lte"}, False),
        ({"engine": "noop", "line": "any"}, True),
    ],
)
def test_a_run_takes_its_turn_unless_its_engine_does_not_use_the_line(asked: dict[str, Any], uses: bool) -> None:
    """What is wrong or not here takes it as well, and what its fallback or another line might need."""
    now = datetime.now(UTC)
    tick = {"run_id": uuid4(), "site": "home", "trigger": "manual", "due_at": now, "published_at": now, "expires_at": now}
    assert uses_line(Tick(**{**tick, **asked})) is uses
