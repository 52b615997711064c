"""Keeping schedules through the API, in a real bucket."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import nats
import pytest
from nats.js.kv import KeyValue

from shared import subjects
from shared.due import following
from shared.schedules import Schedule
from tests.integration.api_server import in_process
from tests.servers import Nats

PATH = "/api/v1/schedules"
HOURLY = {"timing": {"kind": "interval", "every_s": 3600}}
NIGHTLY = {"timing": {"kind": "cron", "expression": "0 3 * * *", "zone": "Europe/Berlin"}}


@pytest.fixture
async def api(nats_server: Nats, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an API on this test's servers."""
    async with in_process(nats_server.url, database_url) as client:
        yield client


@pytest.fixture
async def bucket(api: httpx.AsyncClient, nats_server: Nats) -> AsyncIterator[KeyValue]:
    """Give the bucket itself, as the NATS command line would."""
    client = await nats.connect(nats_server.url)
    yield await client.jetstream().key_value(subjects.SCHEDULES)
    await client.close()


async def _create(api: httpx.AsyncClient, name: str = "hourly", **spec: Any) -> dict[str, Any]:
    answer = await api.post(PATH, json={"name": name, **HOURLY, **spec})
    assert answer.status_code == 201, answer.text
    view: dict[str, Any] = answer.json()
    return view


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_schedule_is_created_once(api: httpx.AsyncClient, bucket: KeyValue) -> None:
    """What is created is in the bucket, at Location, with its revision as ETag; a second one of the name is a 409."""
    before = datetime.now(UTC)
    answer = await api.post(PATH, json={"name": "hourly", **HOURLY, "sites": ["home", "office"]})
    assert (answer.status_code, answer.headers["location"]) == (201, f"{PATH}/hourly")
    view = answer.json()
    entry = await bucket.get("hourly")
    stored = Schedule.model_validate_json(entry.value or b"")
    assert (stored.sites, stored.name, stored.enabled) == (("home", "office"), "hourly", True)
    assert before <= stored.active_since <= datetime.now(UTC)
    assert (view["revision"], answer.headers["etag"]) == (entry.revision, f'"{entry.revision}"')
    assert _moment(view["next_due_at"]) == min(following(stored, site, before) or before for site in stored.sites)
    again = await api.get(answer.headers["location"])
    assert (again.json(), again.headers["etag"]) == (view, answer.headers["etag"])
    assert (await api.post(PATH, json={"name": "hourly", **NIGHTLY})).status_code == 409
    assert Schedule.model_validate_json((await bucket.get("hourly")).value or b"") == stored


async def test_a_deleted_schedule_can_be_created_again(api: httpx.AsyncClient) -> None:
    """Deleting leaves nothing in the list, and the name is free."""
    await _create(api)
    assert (await api.delete(f"{PATH}/hourly")).status_code == 204
    assert (await api.get(f"{PATH}/hourly")).status_code == 404
    assert (await api.delete(f"{PATH}/hourly")).status_code == 404
    assert (await api.get(PATH)).json() == {"items": [], "invalid": []}
    await _create(api)


async def test_put_creates_replaces_and_leaves_alone(api: httpx.AsyncClient) -> None:
    """PUT creates what is absent; the same again keeps the revision; only timing and sites make it begin anew."""
    answer = await api.put(f"{PATH}/nightly", json=NIGHTLY)
    assert (answer.status_code, answer.headers["location"]) == (201, f"{PATH}/nightly")
    first = answer.json()
    same = await api.put(f"{PATH}/nightly", json=NIGHTLY)
    assert (same.status_code, same.json()["revision"]) == (200, first["revision"])
    options = (await api.put(f"{PATH}/nightly", json={**NIGHTLY, "options": {"servers": [1]}})).json()
    assert options["revision"] > first["revision"]
    assert options["active_since"] == first["active_since"]
    moved = (await api.put(f"{PATH}/nightly", json={**NIGHTLY, "sites": ["office"]})).json()
    assert _moment(moved["active_since"]) > _moment(first["active_since"])
    timed = (await api.put(f"{PATH}/nightly", json={**HOURLY, "sites": ["office"]})).json()
    assert _moment(timed["active_since"]) > _moment(moved["active_since"])
    assert timed["options"] == {}


async def test_pausing_and_resuming(api: httpx.AsyncClient) -> None:
    """A paused schedule has no next instant; a resumed one begins anew; doing either twice changes nothing."""
    created = await _create(api)
    paused = (await api.post(f"{PATH}/hourly/pause")).json()
    assert (paused["enabled"], paused["next_due_at"], paused["active_since"]) == (False, None, created["active_since"])
    assert (await api.post(f"{PATH}/hourly/pause")).json() == paused
    resumed = (await api.post(f"{PATH}/hourly/resume")).json()
    assert resumed["enabled"]
    assert _moment(resumed["active_since"]) > _moment(created["active_since"])
    assert (await api.post(f"{PATH}/hourly/resume")).json()["revision"] == resumed["revision"]
    assert (await api.post(f"{PATH}/absent/pause")).status_code == 404


async def test_if_match_guards_a_change(api: httpx.AsyncClient) -> None:
    """PUT and DELETE with a stale revision are a 412 and change nothing; with the present one, or `*`, they go through."""
    stale = f'"{(await _create(api))["revision"]}"'
    changed = await api.put(f"{PATH}/hourly", json=NIGHTLY, headers={"If-Match": stale})
    assert changed.status_code == 200
    assert (await api.put(f"{PATH}/hourly", json=HOURLY, headers={"If-Match": stale})).status_code == 412
    assert (await api.delete(f"{PATH}/hourly", headers={"If-Match": stale})).status_code == 412
    assert (await api.put(f"{PATH}/absent", json=HOURLY, headers={"If-Match": "*"})).status_code == 412
    assert (await api.get(f"{PATH}/hourly")).json() == changed.json()
    assert (await api.put(f"{PATH}/hourly", json=HOURLY, headers={"If-Match": f'"0", {changed.headers["etag"]}'})).status_code == 200
    assert (await api.delete(f"{PATH}/hourly", headers={"If-Match": "*"})).status_code == 204


async def test_two_writers_never_overwrite_each_other_unseen(api: httpx.AsyncClient) -> None:
    """Of many changes to one revision exactly one goes through, with If-Match (412) or by the bucket itself (409)."""
    etag = f'"{(await _create(api))["revision"]}"'
    changes = [
        api.put(f"{PATH}/hourly", json={"timing": {"kind": "interval", "every_s": 60 + n}}, headers={"If-Match": etag}) for n in range(20)
    ]
    statuses = [answer.status_code for answer in await asyncio.gather(*changes)]
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 409, 412}
    deleted = [answer.status_code for answer in await asyncio.gather(*(api.delete(f"{PATH}/hourly") for _ in range(10)))]
    assert deleted.count(204) == 1
    assert set(deleted) <= {204, 404, 409}
    created = await asyncio.gather(*(api.post(PATH, json={"name": "race", **HOURLY}) for _ in range(10)))
    assert sorted(answer.status_code for answer in created) == [201] + [409] * 9


async def test_pausing_survives_other_changes_at_the_same_time(api: httpx.AsyncClient) -> None:
    """A pause goes through whatever else is changed meanwhile, and loses none of it."""
    await _create(api)
    puts = (api.put(f"{PATH}/hourly", json={**HOURLY, "enabled": False, "options": {"n": n}}) for n in range(10))
    answers = await asyncio.gather(*(api.post(f"{PATH}/hourly/pause") for _ in range(10)), *puts)
    assert [answer.status_code for answer in answers[:10]] == [200] * 10
    options = [answer.json()["options"] for answer in answers[10:] if answer.status_code == 200]
    final = (await api.get(f"{PATH}/hourly")).json()
    assert not final["enabled"]
    assert not options or final["options"] in options


async def test_what_is_no_schedule_does_not_break_the_list(api: httpx.AsyncClient, bucket: KeyValue) -> None:
    """Values that somebody wrote with the NATS command line are named with the reason; PUT and DELETE mend them."""
    await _create(api)
    await bucket.put("broken", b"not json")
    await bucket.put("empty", b"")
    await bucket.put("Odd.Key", b'{"name": "x"}')
    other = (await bucket.get("hourly")).value or b""
    await bucket.put("copy", other)
    listed = (await api.get(PATH)).json()
    assert [item["name"] for item in listed["items"]] == ["hourly"]
    assert [each["name"] for each in listed["invalid"]] == ["Odd.Key", "broken", "copy", "empty"]
    assert all(each["reason"] for each in listed["invalid"])
    assert "hourly" in listed["invalid"][2]["reason"]
    missing = await api.get(f"{PATH}/broken")
    assert missing.status_code == 404
    assert "no schedule" in missing.json()["detail"]
    assert (await api.post(PATH, json={"name": "broken", **HOURLY})).status_code == 409
    assert (await api.put(f"{PATH}/broken", json=HOURLY)).status_code == 200
    assert (await api.delete(f"{PATH}/empty")).status_code == 204
    assert len((await api.get(PATH)).json()["items"]) == 2


async def test_a_wrong_field_is_named(api: httpx.AsyncClient) -> None:
    """Each thing that is wrong with a body is a 422 with the path to the field, never a 500."""
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    for body, field in (
        ({}, "timing"),
        ([], "body"),
        ({"name": "x", "timing": {"kind": "interval", "every_s": 0}}, "timing.every_s"),
        ({"name": "x", "timing": {"kind": "interval", "every_s": 10**30}}, "timing.every_s"),
        ({"name": "x", "timing": {"kind": "cron", "expression": "every day"}}, "timing.expression"),
        ({"name": "x", "timing": {"kind": "cron", "expression": "0 0 30 2 *"}}, "timing.expression"),
        ({"name": "x", "timing": {"kind": "cron", "expression": "* * * * *", "zone": "Mars"}}, "timing.zone"),
        ({"name": "x", "timing": {"kind": "moon"}}, "timing"),
        ({"name": "X", **HOURLY}, "name"),
        ({"name": "x", **HOURLY, "every": 5}, "every"),
        ({"name": "x", **HOURLY, "sites": []}, "sites"),
        ({"name": "x", **HOURLY, "sites": ["a b"]}, "sites.0"),
        ({"name": "x", **HOURLY, "engine": "e\x00"}, "engine"),
        ({"name": "x", **HOURLY, "options": {"a": deep}}, "options"),
    ):
        answer = await api.post(PATH, json=body)
        assert answer.status_code == 422, (body, answer.text)
        assert answer.json()["errors"][0]["field"] == field, (body, answer.text)


async def test_bytes_that_are_no_json_are_a_422(api: httpx.AsyncClient, bucket: KeyValue) -> None:
    """Neither broken JSON nor what Python alone reads as JSON is stored, or a defect."""
    hourly = '{"name": "x", "timing": {"kind": "interval", "every_s": 3600}, "options": {"a": %s}}'
    for content in (
        *("", "{", '"', "nul", "[" * 60_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff", "9" * 5_000),
        *(hourly % value for value in ("NaN", "-Infinity", '"\\ud800"', '{"\\udfff": 1}', "[" * 900 + "]" * 900, "9" * 5_000)),
    ):
        answer = await api.post(PATH, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), content[:80]
    assert (await api.get(PATH)).json() == {"items": [], "invalid": []}
