"""The API against its own OpenAPI document."""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from services.api.models import EXAMPLE
from shared.database import Connection
from shared.dead import SUBJECT
from tests.integration.api_server import api_server, in_process
from tests.integration.conftest import Bus, Start
from tests.integration.rows import insert, row
from tests.servers import Nats

HERE = Path(__file__).parent


@pytest.mark.timeout(180)
async def test_schemathesis_finds_nothing(
    nats_server: Nats, bus: Bus, start: Start, database_url: str, database: Connection, tmp_path: Path
) -> None:
    """Asked for everything that the document promises and for what it does not, in every order of calls that it links,
    the API gives no server error, no undocumented status, type or schema, refuses what is right and accepts what is wrong.
    """
    now = datetime.now(UTC)
    await insert(database, row(now, run_id=UUID(EXAMPLE["run_id"])))
    await insert(database, *(row(now, status=status) for status in ("failed", "skipped", "missed")))
    start("recorder", database_url)
    for number in range(30):
        await bus.js.publish("refresher.dead.results", b"garbage %d" % number, headers={SUBJECT: "refresher.result.home.hourly"})
    with api_server(nats_server.url, database_url, tmp_path) as api:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run", f"{api.url}/openapi.json"),
            *("--checks", "all", "--max-examples", "15", "--generation-deterministic", "--no-color"),
            cwd=HERE.parents[1],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert '"level": "error"' not in api.log.read_text()


async def test_every_operation_is_explained(nats_server: Nats, database_url: str) -> None:
    """Each operation has a summary, a description, an id that reads well, one tag, and its errors as problem documents."""
    async with in_process(nats_server.url, database_url) as api:
        document = (await api.get("/openapi.json")).json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == 26
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert [tag for tag in document["tags"] if [tag["name"]] == operation["tags"]]
        assert "500" in operation["responses"]
        for status, response in operation["responses"].items():
            assert response["description"]
            if status >= "400" and operation["tags"] != ["service"]:
                assert response["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (operation["operationId"], parameter["name"])
        _assert_examples(operation, document)


def _assert_examples(operation: dict[str, Any], document: dict[str, Any]) -> None:
    """Assert that whatever is sent or received has an example, at its place or in its model."""
    contents = [operation.get("requestBody", {}), *(each for status, each in operation["responses"].items() if status < "300")]
    for media in (media for content in contents for media in content.get("content", {}).values()):
        schemas = [media["schema"], *media["schema"].get("oneOf", [])]
        models = [document["components"]["schemas"][each["$ref"].rsplit("/", 1)[1]] for each in schemas if "$ref" in each]
        assert "example" in media or all("examples" in model for model in models), operation["operationId"]
        assert "example" in media or models, operation["operationId"]


async def test_every_status_that_comes_is_documented(nats_server: Nats, database_url: str) -> None:
    """The document itself is complete enough for a client to be made from it: no reference leads nowhere."""
    async with in_process(nats_server.url, database_url) as api:
        answer: httpx.Response = await api.get("/openapi.json")
    schemas = answer.json()["components"]["schemas"]
    references = {part.split('"')[0] for part in answer.text.split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    assert "HTTPValidationError" not in references
