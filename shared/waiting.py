"""Wait for something to happen, for so long."""

import asyncio


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait until an event is set and return True, or False when it was not within so many seconds.

    Not `asyncio.wait_for`: on Python 3.11 it swallows a cancellation that arrives together with the event, and a loop around it
    then goes on for ever.
    """
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
