"""Run the scheduler: `python -m services.scheduler`."""

from services.scheduler.app import build
from services.scheduler.settings import SchedulerSettings
from shared.service import start


def main() -> None:
    """Read the settings and serve until told to stop."""
    start("scheduler", SchedulerSettings, build)


if __name__ == "__main__":
    main()
