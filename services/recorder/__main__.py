"""Run the recorder: `python -m services.recorder`."""

from services.recorder.app import build
from services.recorder.settings import RecorderSettings
from shared import logs
from shared.service import serve


def main() -> None:
    """Read the settings and serve until told to stop."""
    settings = RecorderSettings()
    logs.configure("recorder", settings.log_format, settings.log_level)
    service, app = build(settings)
    serve(service, app, settings.recorder_host, settings.recorder_port)


if __name__ == "__main__":
    main()
