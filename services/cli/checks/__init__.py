"""What `refresher doctor` looks at: each module yields findings, and an advice with every one that is not ok."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What was found about one thing."""

    name: str
    state: State
    message: str
    advice: str | None = None
    """What to do; None when all is well."""


def reason(error: BaseException) -> str:
    """Return what an error says, or at least what it is."""
    return str(error) or type(error).__name__
