"""One line per event: JSON for machines, text for a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def configure(service: str, form: str, level: str) -> None:
    """Send every log line of this process to stderr, in `form` (`auto`, `json`, `text`), from `level` on.

    Extra fields go on the line as they are: `log.info("tick published", extra={"run_id": run_id})`. Never a secret.
    """
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(_Text(service) if as_text else _Json(service))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name, at_least in (("uvicorn", "WARNING"), ("httpx", "WARNING"), ("nats", "WARNING")):
        logging.getLogger(name).setLevel(max(logging.getLevelName(at_least), logging.getLevelName(level.upper())))
        logging.getLogger(name).propagate = True


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _Json(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "action": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _Text(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        extras = " ".join(f"{key}={value}" for key, value in _extras(record).items())
        line = f"{at} {record.levelname:<7} {self._service:<9} {record.getMessage()}  {extras}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
