"""The runners that are there."""

from pydantic import ValidationError

from services.api.bus import Bus
from shared import subjects
from shared.runners import Runner


async def present(bus: Bus) -> list[Runner]:
    """Return what each runner says of itself, by site.

    Raises: Unavailable.
    """
    found = []
    for entry in await bus.entries(subjects.RUNNERS):
        try:
            found.append(Runner.model_validate_json(entry.value or b""))
        except ValidationError:
            continue  # somebody else wrote to the bucket; it expires
    return found
