"""Say what is wrong with the options of an engine, before a schedule has them."""

import json
import logging

from nats.micro.request import Request
from pydantic import TypeAdapter, ValidationError

from services.runner import probes
from shared import subjects
from shared.errors import ConfigurationError, ProbeError
from shared.events import Name
from shared.service import Service

log = logging.getLogger(__name__)


async def answer(service: Service, site: str, line: str | None) -> None:
    """Answer for every engine that this runner has: a request is the options, the answer a list of `[field, reason]`."""
    for engine in probes.names():
        try:
            await service.answer(subjects.options(site, line, _NAME.validate_python(engine)), _Handler(engine))
        except ValidationError:
            log.warning("no schedule can name this engine", extra={"engine": engine})


class _Handler:
    def __init__(self, engine: str) -> None:
        self._engine = engine

    async def __call__(self, request: Request) -> None:
        await request.respond(json.dumps(self._wrong(request.data)).encode())

    def _wrong(self, data: bytes) -> list[tuple[str, str]]:
        try:
            return probes.load(self._engine).wrong(json.loads(data))
        except (ConfigurationError, ProbeError) as error:  # of an engine that is installed and does not work, each run says so
            log.warning("options not looked at", extra={"engine": self._engine, "error": str(error)})
            return []


_NAME = TypeAdapter(Name)
