"""What the operations work with; `build()` wires it, and each operation asks for the part that it needs."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from services.api.bus import Bus
from services.api.database import Database
from services.api.feed import Feed
from services.api.memory import Memory


@dataclass(frozen=True)
class Parts:
    """The parts of a running API."""

    database: Database
    bus: Bus
    feed: Feed
    memory: Memory


async def _database(request: Request) -> Database:
    parts: Parts = request.app.state.parts
    return parts.database


async def _bus(request: Request) -> Bus:
    parts: Parts = request.app.state.parts
    return parts.bus


async def _feed(request: Request) -> Feed:
    parts: Parts = request.app.state.parts
    return parts.feed


async def _memory(request: Request) -> Memory:
    parts: Parts = request.app.state.parts
    return parts.memory


TheDatabase = Annotated[Database, Depends(_database)]
TheBus = Annotated[Bus, Depends(_bus)]
TheFeed = Annotated[Feed, Depends(_feed)]
TheMemory = Annotated[Memory, Depends(_memory)]
