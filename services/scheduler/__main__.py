"""Run the scheduler: `python -m services.scheduler`."""

from services.scheduler.app import build
from services.scheduler.settings import SchedulerSettings
from shared import logs
from shared.service import serve


def main() -> None:
    """Read the settings and serve until told to stop."""
    settings = SchedulerSettings()
    logs.configure("scheduler", settings.log_format, settings.log_level)
    service, app = build(settings)
    serve(service, app, settings.scheduler_host, settings.scheduler_port)


if __name__ == "__main__":
    main()
