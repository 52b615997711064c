"""What every service has around its own work: health, metrics, background tasks that may not die unseen, and a watchdog."""

import asyncio
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any, TypeVar

import uvicorn
from faststream.nats import NatsBroker
from nats import micro
from nats.aio.client import Client
from nats.micro.request import Handler
from nats.micro.service import Service as MicroService
from prometheus_client import CollectorRegistry, Gauge, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import logs
from shared.connect import client_of
from shared.errors import ConfigurationError
from shared.head import Bounded
from shared.listening import PortTaken, bound
from shared.settings import MISCONFIGURED, Settings, refuse
from shared.waiting import happens

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)

STOP_WITHIN_S = 10.0
CANCEL_AGAIN_S = 7.0
"""No task has more to do than that once it is cancelled: a runner publishes what it has, and hands back the rest."""
DATE_EVERY_S = 1.0
"""How often the date in the answers is set anew."""
STUCK_AFTER_S = 60.0
"""An event loop that has not turned for this long will not turn again: end the process, the supervisor restarts it."""


class Service:
    """The frame of a service.

    `check(name, probe)` adds something that must be up for readiness; `spawn(coroutine)` runs a loop for as long as the
    service runs: should it end or fail, the service logs it and ends with exit code 1.
    """

    def __init__(self, name: str, broker: NatsBroker) -> None:
        self.name = name
        self.broker = broker
        self.version = version("refresher")
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        Gauge("refresher_build_info", "The version that runs.", ["service", "version"], registry=self.registry).labels(
            name, self.version
        ).set(1)
        self._lag = Histogram(
            "refresher_loop_lag_seconds",
            "How late the event loop was to wake.",
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
            registry=self.registry,
        )
        self._checks: dict[str, Callable[[], Awaitable[object]]] = {"nats": self._nats_is_up}
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: Client | None = None
        self._micro: MicroService | None = None
        self._turned_at = time.monotonic()
        self.failed = asyncio.Event()
        self.refused: ConfigurationError | None = None
        """The wrong setting for which it could not start."""
        self.stopping = asyncio.Event()
        """Set as soon as the service is told to stop; `running` ends only after the last connection."""

    def check(self, name: str, probe: Callable[[], Awaitable[object]]) -> None:
        """Name something that readiness needs; `probe` raises while it is down."""
        self._checks[name] = probe

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` until the service stops."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def answer(self, subject: str, handler: Handler) -> None:
        """Answer requests on a subject for as long as the service runs; of several replicas one answers.

        What `handler` raises is answered as an error: a ServiceError with its code, anything else with 500.
        Raises: RuntimeError when it does not run.
        """
        if self._micro is None:
            raise RuntimeError("only a running service answers")
        name = re.sub(r"[^A-Za-z0-9_-]", "-", subject)
        await self._micro.add_endpoint(name=name, subject=subject, queue_group=self.name, handler=handler)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect to NATS, answer `$SRV` requests and watch the loop; afterwards stop every task and drain."""
        self.spawn(self._watch_loop(), "loop lag")
        await self.broker.start()
        try:
            self._client, _ = client_of(self.broker)
            self._micro = await micro.add_service(
                self._client, name=f"refresher-{self.name}", version=self.version, description=f"The {self.name} of Refresher"
            )
            yield
        except ConfigurationError as error:
            self.refused = error
            raise
        finally:
            for task in self._tasks:
                task.remove_done_callback(self._ended)
            await _cancelled(self._tasks)
            self._client = self._micro = None
            await self.broker.stop()

    def routes(self) -> list[Route]:
        """Return `/health/live`, `/health/ready` and `/metrics`."""
        return [Route("/health/live", self._live), Route("/health/ready", self._ready), Route("/metrics", self._metrics)]

    def app(self, lifespan: Callable[[], AbstractAsyncContextManager[None]]) -> Starlette:
        """Build the ASGI application of a service that has no other routes."""
        return Starlette(routes=self.routes(), lifespan=lambda _: lifespan())

    async def down(self) -> dict[str, str]:
        """Return what is down and why; empty when everything is up."""
        reasons: dict[str, str] = {}
        for name, probe in self._checks.items():
            try:
                await asyncio.wait_for(probe(), 3)
            except Exception as error:  # noqa: BLE001 - whatever a probe raises is the answer
                reasons[name] = str(error) or type(error).__name__
        return reasons

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"status": "up", "service": self.name, "version": self.version})

    async def _ready(self, _: Request) -> Response:
        reasons = await self.down()
        return JSONResponse({"status": "down" if reasons else "up", "down": reasons}, status_code=503 if reasons else 200)

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def _nats_is_up(self) -> None:
        if not await self.broker.ping(timeout=2):
            raise ConnectionError("not connected")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        log.critical("background task ended", extra={"task": task.get_name()}, exc_info=error)
        self.failed.set()

    async def _watch_loop(self) -> None:
        ended = threading.Event()
        threading.Thread(target=self._watchdog, args=(ended,), name="watchdog", daemon=True).start()
        try:
            while True:
                before = time.monotonic()
                await asyncio.sleep(1)
                self._turned_at = time.monotonic()
                self._lag.observe(max(0.0, self._turned_at - before - 1))
            if self._client and self._client.is_closed:  # after most errors of the server nats-py gives up for good
                log.critical("the connection to nats was closed: ending, to be started again")
                self.failed.set()
        finally:
            ended.set()  # a process that goes on without the service must not be ended for it

    def _watchdog(self, ended: threading.Event) -> None:
        while not ended.wait(10):
            if time.monotonic() - self._turned_at > STUCK_AFTER_S:
                sys.stderr.write(f"refresher {self.name}: the event loop is stuck; exiting to be restarted\n")
                os._exit(70)


async def _cancelled(tasks: set["asyncio.Task[None]"]) -> None:
    """Cancel tasks and wait for them, and once more where that was lost: `wait_for` of Python 3.11 can swallow it."""
    for within_s in (CANCEL_AGAIN_S, STOP_WITHIN_S - CANCEL_AGAIN_S):
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=within_s)
        if not tasks:
            return


class _Server(uvicorn.Server):
    """Says that it stops before it waits for its connections, since a live feed keeps one open for ever; and lets the idle rest.

    uvicorn wakes ten times a second to see whether it is to stop. Of what services use that mostly wait, that is a large part.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # a signal by itself does not wake the loop from its waiting
        asyncio.get_running_loop().call_soon_threadsafe(self._service.stopping.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # it has said why; within a task it would end the loop and leave a traceback
            self.should_exit = True

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # which keeps the date in the answers right
            await happens(self._service.stopping, DATE_EVERY_S)


def start(name: str, kind: type[S], build: Callable[[S], tuple[Service, Any]]) -> None:
    """Read a service's settings, wire it and serve until SIGTERM or SIGINT. A second signal ends it at once.

    Exits with MISCONFIGURED when a setting is wrong, with 1 when the start or a background task failed.
    """
    try:
        settings = kind()
        logs.configure(name, settings.log_format, settings.log_level)
        service, app = build(settings)
        sockets = bound(getattr(settings, f"{name}_host"), getattr(settings, f"{name}_port"))
    except ValidationError as error:
        refuse(name, error)
    except ConfigurationError as error:
        sys.stderr.write(f"refresher {name}: {error}\n")
        sys.exit(1 if isinstance(error, PortTaken) else MISCONFIGURED)
    config = uvicorn.Config(
        _plainly(service, app),
        log_config=None,
        access_log=False,
        lifespan="on",
        http=Bounded,
        ws="none",  # nobody speaks it here, and its library is half a megabyte
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    server = _Server(config, service)
    asyncio.run(_serve(server, service, sockets))
    if service.refused:
        sys.exit(MISCONFIGURED)
    if service.failed.is_set() or not server.started:
        sys.exit(1)


def _plainly(service: Service, app: ASGIApp) -> ASGIApp:
    """Return the application, which says in one sentence for which wrong setting it could not start, instead of by a traceback."""

    async def plainly(scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and service.refused:
                message = {**message, "message": str(service.refused)}
            await send(message)

        await app(scope, receive, tell if scope["type"] == "lifespan" else send)

    return plainly


async def _serve(server: _Server, service: Service, sockets: list[socket.socket]) -> None:
    serving = asyncio.ensure_future(server.serve(sockets))
    ends = {asyncio.ensure_future(event.wait()) for event in (service.failed, service.stopping)}
    await asyncio.wait({serving, *ends}, return_when=asyncio.FIRST_COMPLETED)
    if not (server.started or serving.done()):
        # Still waiting for NATS: there is nothing to end in order, and uvicorn would wait for the start to end first.
        os._exit(int(service.failed.is_set()))
    for end in ends:
        end.cancel()
    service.stopping.set()
    server.should_exit = True
    await serving
