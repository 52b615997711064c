"""Who works: every service answers, every schedule is one, and each site that a schedule uses has a runner for its engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from pydantic import BaseModel, ValidationError

from services.cli.checks import Finding, bus
from shared import buckets, leaf, provision, subjects
from shared.events import ANY
from shared.runners import Runner
from shared.schedules import Schedule

SERVICES = ("scheduler", "runner", "recorder", "api")
ANSWER_WITHIN_S = 0.5

Model = TypeVar("Model", bound=BaseModel)


async def check(client: Client) -> AsyncIterator[Finding]:
    """Yield what is found about services, schedules and runners."""
    running = await _answering(client)
    for service in SERVICES:
        yield _service(service, running.count(f"refresher-{service}"))
    schedules, invalid = await _values(client, subjects.SCHEDULES, Schedule)
    for name, why in invalid.items():
        advice = f"refresher schedules remove {name}, or nats kv del {subjects.SCHEDULES} {name}"
        yield Finding(f"schedule {name}", "failed", f"is no schedule and is ignored: {why}", advice)
    if not schedules:
        yield Finding("schedules", "warning", "nothing is scheduled", "refresher schedules add hourly --every 1h")
    active = [schedule for schedule in schedules.values() if schedule.enabled]
    if schedules:
        yield Finding("schedules", "ok", f"{len(active)} active, {len(schedules) - len(active)} paused")
    runners, _ = await _values(client, subjects.RUNNERS, Runner)
    js = client.jetstream(timeout=5)
    leaves = await _leaves(js)
    for site, line in sorted({(site, schedule.line or "") for schedule in active for site in schedule.sites}):
        wanted = [each for each in active if site in each.sites and (each.line or "") == line]
        if line == ANY:
            yield _any_line(site, wanted, [runner for runner in runners.values() if runner.site == site])
            continue
        here = [runner for runner in runners.values() if (runner.site, runner.line or "") == (site, line)]
        yield _line(site, line, wanted, here)
        if site not in leaves:  # a leaf has the consumers of its runners itself
            yield await bus.check_consumer(js, subjects.TICKS, provision.runner_consumer(site, line or None))
    for site in leaves:
        yield _server(site, await leaf.can_be_reached(client, site))


async def _answering(client: Client) -> list[str]:
    """Return the names of the services that answer a ping, one per instance (NATS ADR-32)."""
    names: list[str] = []

    async def answered(message: Msg) -> None:
        names.append(str(json.loads(message.data)["name"]))

    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=answered)
    await client.publish("$SRV.PING", b"", reply=inbox)
    await asyncio.sleep(ANSWER_WITHIN_S)  # nobody knows how many there are: those that answer in time count
    await subscription.unsubscribe()
    return names


def _service(service: str, count: int) -> Finding:
    if not count:
        return Finding(f"service {service}", "failed", "none answers", f"start it: refresher run {service} (`refresher up` starts all)")
    return Finding(f"service {service}", "ok", f"{count} running" if count > 1 else "running")


async def _leaves(js: JetStreamContext) -> list[str]:
    try:
        return leaf.leaves_of((await js.stream_info(subjects.RESULTS)).config)
    except NotFoundError:  # a missing stream is reported with the streams
        return []


def _server(site: str, reached: bool) -> Finding:
    if reached:
        return Finding(f"server of site {site}", "ok", "answers")
    advice = "see its line and its NATS server: its results come when it is back"
    return Finding(f"server of site {site}", "failed", "cannot be reached", advice)


def _line(site: str, line: str, schedules: list[Schedule], runners: list[Runner]) -> Finding:
    """Return what is to be said of the runners of a line, and of the schedules that measure it."""
    name, where = (f"site {site}, line {line}", f"REFRESHER_LINE={line} ") if line else (f"site {site}", "")
    if not runners:
        return Finding(name, "failed", "no runner is there", f"start one: REFRESHER_SITE={site} {where}refresher run runner")
    installed = {engine for runner in runners for engine in runner.engines}
    wanted = {engine for each in schedules for engine in (each.engine, each.fallback and each.fallback.engine) if engine}
    if missing := sorted(wanted - installed):
        advice = "install them where the runner runs, or change the schedules"
        return Finding(name, "failed", f"its runner lacks engines that schedules use: {', '.join(missing)}", advice)
    given = {label for runner in runners for label in runner.labels}
    if missing := sorted({label for each in schedules for label in each.labels} - given):
        advice = f"set REFRESHER_LABELS={','.join(sorted(given | set(missing)))} for it, or change the schedules"
        return Finding(name, "failed", f"its runner lacks labels that schedules want: {', '.join(missing)}", advice)
    return Finding(name, "ok", f"{len(runners)} runner{'s' if len(runners) > 1 else ''} there")


def _any_line(site: str, schedules: list[Schedule], runners: list[Runner]) -> Finding:
    """Return what is to be said of a site where some schedules measure whichever line is free."""
    name = f"site {site}, any line"
    if not runners:
        return Finding(name, "failed", "no runner is there", f"start one: REFRESHER_SITE={site} refresher run runner")
    able = [any(_can(runner, each) for runner in runners) for each in schedules]
    if not all(able):
        lacking = ", ".join(each.name for each, is_able in zip(schedules, able, strict=True) if not is_able)
        advice = "install the engine or set REFRESHER_LABELS on one of its lines, or change the schedules"
        return Finding(name, "failed", f"none of its lines has both engine and labels for: {lacking}", advice)
    lines = len({runner.line for runner in runners})
    return Finding(name, "ok", f"{lines} line{'s' if lines > 1 else ''} there")


def _can(runner: Runner, schedule: Schedule) -> bool:
    engines = {schedule.engine, schedule.fallback.engine} if schedule.fallback else {schedule.engine}
    return engines <= set(runner.engines) and set(schedule.labels) <= set(runner.labels)


async def _values(client: Client, bucket: str, model: type[Model]) -> tuple[dict[str, Model], dict[str, str]]:
    """Return the values in a bucket by their keys, and the reasons of those that are none."""
    found: dict[str, Model] = {}
    invalid: dict[str, str] = {}
    try:
        stored = await buckets.entries(client.jetstream(timeout=5), bucket)
    except NotFoundError:  # a missing bucket is reported with the streams
        return found, invalid
    for entry in stored:
        try:
            found[entry.key] = model.model_validate_json(entry.value or b"")
        except ValidationError as error:
            invalid[entry.key] = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'value'}: {each['msg']}" for each in error.errors())
    return found, invalid
