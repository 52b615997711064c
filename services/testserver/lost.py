"""A defect of asyncio that is none of the server's, kept out of the log.

Where a write fails within `resume_writing`, and TLS writes there, the transport loses its connection at once and once more in
the next turn of the loop (CPython, gh-156512). The first time did all that is to be done; the second finds nothing and raises.
"""

import asyncio
import traceback
from typing import Any


def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nothing has caught, as asyncio does by itself, but not that."""
    if not _was_lost_before(context.get("exception")):
        loop.default_exception_handler(context)


def _was_lost_before(error: BaseException | None) -> bool:
    """Tell whether it was raised by `_call_connection_lost` itself, and not by the protocol that it calls."""
    if not isinstance(error, AttributeError) or error.obj is not None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_name == "_call_connection_lost"
