"""Wire the API: the routes, the pool, the bus and the live feed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from services.api import audit, dead, live, outages, results, runs, schedules, summary, widget
from services.api.bus import Bus
from services.api.database import Database
from services.api.documentation import DESCRIPTION, TAGS, add_health, complete
from services.api.feed import Feed
from services.api.guard import Guard
from services.api.memory import Memory
from services.api.metrics import LastValues, Measured, add_metrics
from services.api.parameters import known_parameters
from services.api.parts import Parts
from services.api.problems import Defects, install
from services.api.settings import ApiSettings
from shared import subjects
from shared.connect import broker, client_of
from shared.provision import until_streams
from shared.service import Service


def build(settings: ApiSettings) -> tuple[Service, FastAPI]:
    """Wire an API; nothing connects before it is served."""
    service = Service("api", broker(settings, "api"))
    database = Database(settings)
    parts = Parts(database, Bus(service.broker, settings.nats_url), Feed(), Memory(database))
    service.check("postgres", parts.database.answers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(), parts.database.opened():
            client, js = client_of(service.broker)
            await parts.feed.follow(client)
            await until_streams(js, subjects.TICKS, f"KV_{subjects.SCHEDULES}", f"KV_{subjects.RUNNERS}")
            closing = asyncio.create_task(parts.feed.close_after(service.stopping))
            yield
            closing.cancel()

    app = FastAPI(
        title="Refresher",
        version=service.version,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        redoc_url=None,
        lifespan=lifespan,
        dependencies=[Depends(known_parameters)],
    )
    app.state.parts = parts
    for module in (results, summary, outages, audit, schedules, runs, live, dead, widget):
        app.include_router(module.router)
    add_health(app, service)
    add_metrics(app, service, LastValues(parts.database, parts.bus))
    install(app)
    complete(app)
    app.add_middleware(Defects)
    app.add_middleware(Guard, hosts=settings.api_hosts)
    app.add_middleware(Measured, registry=service.registry, feed=parts.feed)
    return service, app
