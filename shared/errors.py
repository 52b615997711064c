"""Every error that Refresher raises itself.

RefresherError
├── ConfigurationError   a setting, a flag or a file is wrong: says which and what to do
├── Unavailable          a server that is needed does not answer: says which and where
├── TooMuch              more was asked for than one answer can hold
├── ConsumerGone         the JetStream consumer this process lives from was deleted: exit and be restarted
├── MessagesLost         what a consumer sent once, and never again, did not arrive: read anew
└── ProbeError           the link, not the code, is at fault: recorded as a failed result
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class RefresherError(Exception):
    """The base of all; its text is a sentence that a person can act on."""


class ConfigurationError(RefresherError):
    """A setting, a flag or a file is wrong."""


class Unavailable(RefresherError):
    """A server that is needed does not answer."""


class TooMuch(RefresherError):
    """More was asked for than one answer can hold: ask for less."""


class ConsumerGone(RefresherError):
    """The JetStream consumer or its stream no longer exists."""


class MessagesLost(RefresherError):
    """A consumer without acknowledgements sent messages that did not arrive."""


class ProbeError(RefresherError):
    """A measurement could not be made, or what came out is not to be believed.

    `kind` is one word for counting and alerting; docs/engines.md has them all, and what each means. The message is the sentence
    for people; `log` is the end of what the engine said.
    """

    def __init__(self, kind: str, message: str, *, log: str = "", engine_version: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.log = log
        self.engine_version = engine_version


def reasons(error: "ValidationError") -> str:
    """Return what is wrong with a value, on one line: the first five reasons, each with the place that it is about."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'value'}: {reason(each)}" for each in error.errors()[:5])


def reason(each: "ErrorDetails") -> str:
    """Return one of pydantic's reasons, without what it puts before ours."""
    return each["msg"].removeprefix("Value error, ")
