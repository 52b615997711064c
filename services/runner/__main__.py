"""Run the runner: `python -m services.runner`."""

from services.runner.app import build
from services.runner.settings import RunnerSettings
from shared.service import start


def main() -> None:
    """Read the settings and serve until told to stop."""
    start("runner", RunnerSettings, build)


if __name__ == "__main__":
    main()
