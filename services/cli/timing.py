"""When a schedule is due, as a person types and reads it."""

from typing import Any

import typer

from services.cli import output, values

_MAIN = {"interval": ("--every", "every_s"), "cron": ("--cron", "expression"), "random": ("--random", "mean_s"), "once": ("--at", "at")}
_FLAGS = {"phase_s": "--phase", "gap": "--gap", "fold": "--fold", "min_s": "--shortest", "max_s": "--longest"}
_BELONGS = {"phase_s": "--every", "gap": "--cron", "fold": "--cron", "min_s": "--random", "max_s": "--random"}


def of(*, manual: bool, zone: str | None, **kinds: dict[str, Any]) -> dict[str, Any]:
    """Return the timing that the options of `schedules add` give: one kind, with what belongs to it.

    Raises: typer.BadParameter for no kind or several, and for an option of another kind.
    """
    given = [kind for kind, fields in kinds.items() if fields[_MAIN[kind][1]] is not None] + ["manual"] * manual
    if len(given) != 1:
        raise typer.BadParameter(
            "say one of --every 1h, --cron '0 3 * * *', --random 2h, --at 2026-12-24T18:00 and --manual.", param_hint="'--every'"
        )
    for kind, fields in kinds.items():
        for field, value in fields.items():
            if kind not in given and value is not None:
                raise typer.BadParameter(f"it belongs to {_BELONGS[field]}.", param_hint=f"'{_FLAGS[field]}'")
    fields = kinds.get(given[0], {})
    if given[0] == "cron" and zone:
        fields = {**fields, "zone": zone}
    return {"kind": given[0], **{field: value for field, value in fields.items() if value is not None}}


def describe(timing: dict[str, Any]) -> str:
    """Return when it is, in a few words."""
    match timing["kind"]:
        case "cron":
            return f"{timing['expression']} ({timing['zone']})"
        case "random":
            return f"at random, every {values.duration(timing['mean_s'])} on average"
        case "once":
            return f"once, {output.local_time(timing['at'])}"
        case "manual":
            return "when asked to"
    phase = "" if timing.get("phase_s") is None else f", {values.duration(timing['phase_s'])} after the full period"
    return f"every {values.duration(timing['every_s'])}{phase}"


def exclusion(each: dict[str, Any]) -> str:
    """Return a time that is left out, in a few words."""
    if each["kind"] == "period":
        return f"{output.local_time(each['from'])} to {output.local_time(each['to'])}"
    return f"{','.join(each['days'])} {each['start']}-{each['end']} ({each['zone']})"
