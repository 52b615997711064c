"""The commands under `refresher dead`."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from services.cli import output
from services.cli.api import Api, Problem, connect
from services.cli.options import Json
from services.cli.output import Column

app = typer.Typer(no_args_is_help=True, help="See what could not be used, publish it again or drop it.")

COLUMNS = (Column("id", right=True), Column("put aside"), Column("came on"), Column("bytes", right=True), Column("reason", last=True))
PAGE = 100

Id = Annotated[int, typer.Argument(min=1, metavar="ID", help="Its number, as the list has it.")]
Ids = Annotated[list[int] | None, typer.Argument(min=1, metavar="ID...", help="Their numbers, as the list has them.")]
All = Annotated[bool, typer.Option("--all", help="All that are there now.")]


@app.command("list")
def list_(*, limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20, json: Json = False) -> None:
    """List the messages that could not be used, the oldest first, with their reasons.

    They are kept for 30 days.
    """
    client = connect()
    total, found = _letters(client, limit)
    letters = list(found)
    if json:
        for each in letters:
            output.write_json(each)
    else:
        output.table(COLUMNS, [_row(each) for each in letters])
    if total > len(letters):
        output.say(f"These are {len(letters):,} of {total:,}: --limit shows more.")
    elif not letters:
        output.say("There are no dead letters.")


@app.command()
def show(letter: Id, *, json: Json = False) -> None:
    """Show one with the first 64 KiB of what is in it.

    What is no text is shown as base64.
    """
    found = connect().get(f"/dead/{letter}")
    if json:
        output.write_json(found)
        return
    cut = "" if found["kept_bytes"] == found["size_bytes"] else f", of which {found['kept_bytes']:,} were kept"
    output.pairs(
        {
            "id": found["sequence"],
            "put aside": output.local_time(found["put_aside_at"]),
            "came on": found["subject"],
            "stream": found["stream"],
            "number in it": found["stream_sequence"],
            "bytes": f"{found['size_bytes']:,}{cut}",
            "reason": found["reason"],
            "redrive": f"no: {found['obstacle']}" if found["obstacle"] else "yes",
            "content": "the beginning" if not found["is_whole"] else "all of it",
            "encoding": found["encoding"],
        }
    )
    output.write(f"\n{_harmless(found['content'])}\n")


@app.command()
def redrive(ids: Ids = None, *, every: All = False) -> None:
    """Publish results again that could not be used, and remove them from the dead letters.

    For instance after an upgrade of the recorder that could not read them.
    Doing it twice does no harm: a run is recorded once. What is refused anew
    is put aside anew, under a new number. Exits with 1 when any could not be
    published.

    [bold]Examples[/bold]
      refresher dead redrive 17 18
      refresher dead redrive --all
    """
    _each(ids or [], lambda client, each: client.post(f"/dead/{each}/redrive"), "Published {} again.", every=every)


@app.command()
def drop(ids: Ids = None, *, every: All = False) -> None:
    """Remove messages that could not be used, for good.

    Exits with 1 when any was not there.

    [bold]Examples[/bold]
      refresher dead drop 17 18
      refresher dead drop --all
    """
    _each(ids or [], lambda client, each: client.delete(f"/dead/{each}"), "Dropped {}.", every=every)


def _each(ids: list[int], do: Callable[[Api, int], object], told: str, *, every: bool) -> None:
    """Do something to each letter; what cannot be done to one is told, and ends nothing."""
    if bool(ids) == every:
        raise typer.BadParameter("say which by their numbers, or --all.", param_hint="'ID...' / '--all'")
    client = connect()
    # all that are there now, and not what comes meanwhile: a letter that is refused anew would come round for ever
    chosen = [letter["sequence"] for letter in list(_letters(client)[1])] if every else ids
    done = 0
    for each in chosen:
        try:
            do(client, each)
            done += 1
        except Problem as error:
            if error.status not in {404, 409}:
                raise
            output.say(output.clean(str(error)))
    output.say(told.format(f"{done:,}"))
    raise typer.Exit(0 if done == len(chosen) else 1)


def _letters(client: Api, limit: int | None = None) -> tuple[int, Iterator[dict[str, Any]]]:
    """Return how many letters there are in all, and at most `limit` of them, the oldest first."""
    first = client.get("/dead", limit=min(limit or PAGE, PAGE))

    def pages() -> Iterator[dict[str, Any]]:
        page, left = first, limit
        while True:
            yield from page["items"]
            left = None if left is None else left - len(page["items"])
            if page["next"] is None or left == 0:
                return
            page = client.get("/dead", after=page["next"], limit=min(left or PAGE, PAGE))

    return first["total"], pages()


def _row(letter: dict[str, Any]) -> list[str]:
    return [
        str(letter["sequence"]),
        output.local_time(letter["put_aside_at"]),
        letter["subject"] or letter["stream"],
        f"{letter['size_bytes']:,}",
        letter["reason"],
    ]


def _harmless(text: str) -> str:
    """Return text whose control characters are written out: it may come from anybody, and a terminal obeys them."""
    return "".join(each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode() for each in text)
