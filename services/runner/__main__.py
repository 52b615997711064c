"""Run the runner: `python -m services.runner`."""

from services.runner.app import build
from services.runner.settings import RunnerSettings
from shared import logs
from shared.service import serve


def main() -> None:
    """Read the settings and serve until told to stop."""
    settings = RunnerSettings()
    logs.configure("runner", settings.log_format, settings.log_level)
    service, app = build(settings)
    serve(service, app, settings.runner_host, settings.runner_port)


if __name__ == "__main__":
    main()
