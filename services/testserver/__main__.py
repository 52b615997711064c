"""Run the test server: `python -m services.testserver`."""

import asyncio
import sys
from typing import Any

from pydantic import ValidationError

from services.testserver.app import serve
from services.testserver.settings import TestserverSettings
from shared import logs
from shared.errors import ConfigurationError
from shared.settings import refuse

NAME = "testserver"


def run(**given: Any) -> None:
    """Read the settings, those given first, and serve until SIGTERM or SIGINT. A second signal ends it at once.

    Exits with MISCONFIGURED when a setting is wrong.
    Raises: ConfigurationError where it cannot listen, or a certificate or token cannot be used.
    """
    try:
        settings = TestserverSettings(**given)
    except ValidationError as error:
        refuse(NAME, error)
    logs.configure(NAME, settings.log_format, settings.log_level)
    asyncio.run(serve(settings))


def main() -> None:
    """Run it with the settings of the environment alone."""
    try:
        run()
    except ConfigurationError as error:
        sys.exit(f"refresher {NAME}: {error}")


if __name__ == "__main__":
    main()
