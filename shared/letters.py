"""Dead letters as they are shown: what the API asks a recorder, and what it is answered, as JSON.

An error is answered as NATS services do (NATS: ADR-32): its code and its description are in the headers of the answer.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

LONGEST_PAGE = 100
LONGEST_SHOWN = 64 * 1024
"""How many bytes of a letter's content are shown: an answer must fit into a message, and a person's patience."""

Sequence = Annotated[int, Field(ge=1, lt=2**53)]
"""Where a message is in its stream; a number that every reader of JSON can hold."""


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(_Question):
    """Show letters, the oldest first."""

    after: Annotated[int, Field(ge=0, lt=2**53)] = 0
    limit: Annotated[int, Field(ge=1, le=LONGEST_PAGE)] = LONGEST_PAGE


class Which(_Question):
    """The letter that this is about."""

    sequence: Sequence


class Letter(BaseModel):
    """A message that could not be used."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    """Its number among the dead letters."""
    put_aside_at: AwareDatetime
    stream: str
    """The stream that it comes from."""
    stream_sequence: int | None
    """Its number there; null when nothing says."""
    subject: str | None
    """The subject on which it came; null when nothing says."""
    reason: str
    """Why it could not be used; empty when nothing says."""
    size_bytes: int
    kept_bytes: int
    """Less than its size when it was too large to be kept whole."""
    obstacle: str | None
    """Why it cannot be published again; null when it can."""


class FullLetter(Letter):
    """A message that could not be used, and what is in it."""

    encoding: Literal["text", "base64"]
    """How to read `content`: `base64` when the bytes are no UTF-8."""
    content: str
    """The first 64 KiB."""
    is_whole: bool
    """Whether `content` is all of the message."""


class LetterPage(BaseModel):
    """Dead letters, the oldest first."""

    model_config = ConfigDict(frozen=True)

    items: list[Letter]
    next: int | None
    """Give it as `after` for the next page; null on the last."""
    total: int
    """How many there are in all."""
