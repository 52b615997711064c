"""Run the API: `python -m services.api`."""

from services.api.app import build
from services.api.settings import ApiSettings
from shared import logs
from shared.service import serve


def main() -> None:
    """Read the settings and serve until told to stop."""
    settings = ApiSettings()
    logs.configure("api", settings.log_format, settings.log_level)
    service, app = build(settings)
    serve(service, app, settings.api_host, settings.api_port)


if __name__ == "__main__":
    main()
