"""Run the recorder: `python -m services.recorder`."""

from services.recorder.app import build
from services.recorder.settings import RecorderSettings
from shared.service import start


def main() -> None:
    """Read the settings and serve until told to stop."""
    start("recorder", RecorderSettings, build)


if __name__ == "__main__":
    main()
