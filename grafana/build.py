"""Write `grafana/dashboards/*.json` from the Python beside it."""

import json
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import infrastructure, pipeline, speed

DIRECTORY = Path(__file__).parent / "dashboards"


def documents() -> dict[str, str]:
    """Return the text of each dashboard's file by the file's name."""
    return {
        "speed.json": _text(speed.dashboard()),
        "pipeline.json": _text(pipeline.dashboard()),
        "infrastructure.json": _text(infrastructure.dashboard()),
    }


def _text(built: Dashboard) -> str:
    document = built.build()
    for number, panel in enumerate(document.panels or [], start=1):
        panel.id_val = number  # Grafana would give numbers of its own at every load, and links to a panel would break
    return json.dumps(document, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in documents().items():
        (DIRECTORY / name).write_text(text)
