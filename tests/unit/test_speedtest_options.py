"""The options of the engine `speedtest`, and how far its numbers are to be believed."""

from typing import Any

import pytest

from services.runner.probes import load
from services.runner.probes.speedtest import SpeedtestOptions, confidence
from shared.errors import ProbeError


def test_the_defaults_are_safe() -> None:
    """Without options a run ends within a minute and 4 GB."""
    options = SpeedtestOptions()
    assert (options.timeout_s, options.deadline_s, options.max_bytes, options.https) == (10, 60, 4_000_000_000, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"deadline_s": 9},
        {"deadline_s": 601},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"max_bytes": 0},
        {"server_ids": ["near"]},
        {"server_ids": [0]},
        {"source_address": "eth0"},
        {"server": 1},
    ],
)
async def test_a_wrong_option_is_named(wrong: dict[str, Any]) -> None:
    """Nothing starts, and the failure names the option."""
    with pytest.raises(ProbeError, match=next(iter(wrong))) as caught:
        await load("speedtest").run(wrong, lambda *_, **__: None)
    assert caught.value.kind == "misconfigured"


@pytest.mark.parametrize(
    ("download_bps", "upload_bps", "latency_s", "word"),
    [
        (90e6, 20e6, 0.010, "reliable"),
        (None, None, 0.010, "reliable"),
        (90e6, 20e6, 0.040, "indicative"),
        (400e6, 20e6, 0.010, "indicative"),
        (20e6, 600e6, 0.010, "underestimates"),
        (900e6, None, 0.040, "underestimates"),
    ],
)
def test_fast_and_distant_lines_are_believed_less(
    download_bps: float | None, upload_bps: float | None, latency_s: float, word: str
) -> None:
    """The word follows from what was measured against known lines."""
    assert confidence(download_bps, upload_bps, latency_s) == word
