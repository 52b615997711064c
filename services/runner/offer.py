"""A tick that was handed to a runner."""

import time
from dataclasses import dataclass, field
from itertools import count

from nats.aio.msg import Msg

from shared.events import ANY, Tick

_numbers = count()


@dataclass(eq=False)
class Offer:
    """A tick that was handed to this runner, and the message to acknowledge."""

    tick: Tick
    message: Msg
    number: int = field(default_factory=lambda: next(_numbers))
    since: float = field(default_factory=time.monotonic)
    """When it was handed to this runner first."""
    ended_by: Tick | None = None
    """The tick for which its run is cut short."""
    is_wished_for: bool = False
    """The other lines of the site were told that this one waits to measure it."""

    @property
    def attempt(self) -> int:
        """How often the tick has been delivered."""
        return self.message.metadata.num_delivered or 1

    @property
    def is_anybodys(self) -> bool:
        """Whether every line of the site was handed it, and one of them is to measure it."""
        return self.tick.line == ANY
