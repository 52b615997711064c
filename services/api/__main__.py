"""Run the API: `python -m services.api`."""

from services.api.app import build
from services.api.settings import ApiSettings
from shared.service import start


def main() -> None:
    """Read the settings and serve until told to stop."""
    start("api", ApiSettings, build)


if __name__ == "__main__":
    main()
