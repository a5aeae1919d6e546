"""The commands that control runs: retry, dead letters, pauses, reruns.

The law: that of the other commands for runs. What cannot be done for one of several runs is said, the others are done,
and the exit code is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..tasks.errors import NotFound, StateError
from . import show, spans, words
from .client import Client
from .records import DeadLetter, Run
from .session import journal
from .summaries import Summaries, abbreviated
from .terminal import console, hint

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
RunIds = Annotated[list[str], typer.Argument(metavar="RUN", help="Ids of runs, or the beginnings of them.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, or the beginning of it.")]
SinceOption = Annotated[
    str | None,
    typer.Option(
        help="Only those younger than this (90s, 15m, 2h, 7d), or after this moment (2026-11-20T08:00).",
        metavar="SPAN|MOMENT",
        show_default=False,
    ),
]

dead = typer.Typer(no_args_is_help=True, help="Dead letters: steps that failed for good, with their runs.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    commands: dict[str, Callable[..., None]] = {"retry": retry}
    for name, command in commands.items():
        app.command(name)(command)
    letters: dict[str, Callable[..., None]] = {
        "list": list_dead,
        "show": show_dead,
        "replay": replay,
        "discard": discard,
    }
    for name, command in letters.items():
        dead.command(name)(command)
    app.add_typer(dead, name="dead")


def retry(run_ids: RunIds) -> None:
    """Go on with failed or cancelled runs, in place.

    Their failed and cancelled steps are open again, with all their attempts; what succeeded stays. Exits with 1
    where one of the runs cannot be retried.
    """
    with journal() as client:
        for_each(client, run_ids, client.retry, "retried", "is open already: nothing is to be retried")


def list_dead(
    workflow: Annotated[
        str | None, typer.Option(help="Only those of this workflow.", show_default=False)
    ] = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the latest first."""
    with journal() as client:
        found = client.dead_letters(workflow, since=spans.since(since) if since else None, limit=limit)
        if as_json:
            typer.echo(show.dumps([_letter_json(each) for each in found]))
        elif found:
            out = console()
            out.print(_letters(found, out.width))
        else:
            hint("no dead letters")


def show_dead(run_id: RunId, as_json: AsJson = False) -> None:
    """Show why a run died: its dead letters with reason and traceback."""
    with journal() as client:
        run = client.get(Summaries(client.database).find(run_id))
        found = client.dead_letters_of(run)
        if not found:
            raise NotFound("dead letter", run.id, "`trellis dead list` lists them")
        if as_json:
            typer.echo(show.dumps([_letter_json(each) for each in found]))
            return
        out = console()
        for each in found:
            out.print(
                Text.assemble((each.workflow, "bold"), "  ", (each.run, "dim"), f"  {words.moment(each.at)}"),
                soft_wrap=True,
            )
            out.print(Text.assemble((f"{each.step}: ", "bold"), (words.cause(each.error), "red")))
            trace = str((each.error or {}).get("traceback") or "").rstrip()
            if trace:
                out.print(Padding(Text(trace, "dim"), (0, 0, 0, 2)))
            out.print(f"replay it: trellis dead replay {each.run}", style="dim", soft_wrap=True)


def replay(run_ids: RunIds) -> None:
    """Retry the runs of dead letters, with all attempts anew: the same as `trellis retry`."""
    retry(run_ids)


def discard(run_ids: RunIds) -> None:
    """Remove the dead letters of runs. The runs stay as they are."""
    with journal() as client:
        summaries = Summaries(client.database)
        ids = [summaries.find(each) for each in run_ids]
        counts = {each: client.discard(each) for each in ids}
        for run, count in counts.items():
            typer.echo(f"{run} {words.plural(count, 'dead letter')} discarded")
        raise typer.Exit(0 if all(counts.values()) else 1)


def for_each(
    client: Client, run_ids: list[str], verb: Callable[[Run], bool], done: str, already: str
) -> None:
    """Apply a verb to each of these runs, say what became of it, and leave with 1 where one was refused."""
    summaries = Summaries(client.database)
    found = [client.get(each) for each in dict.fromkeys(summaries.find(each) for each in run_ids)]
    refused = 0
    for run in found:
        try:
            changed = verb(run)
        except StateError as error:
            refused += 1
            hint(str(error), "yellow")
            continue
        if changed:
            typer.echo(f"{run.id} {done}")
        else:
            refused += 1
            hint(f"{run.id} {already}", "yellow")
    raise typer.Exit(1 if refused else 0)


def _letters(found: Sequence[DeadLetter], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "workflow", "step", "died", "reason"):
        table.add_column(name, overflow="fold", no_wrap=name in ("run", "reason"))
    ids = [each.run for each in found]
    for short, each in zip(ids if width >= 120 else abbreviated(ids), found, strict=True):
        table.add_row(
            short,
            each.workflow,
            Text(each.step, "bold"),
            words.moment(each.at),
            Text(words.one_line(words.cause(each.error), 300), "red"),
        )
    return table


def _letter_json(letter: DeadLetter) -> dict[str, object]:
    return {
        "run": letter.run,
        "workflow": letter.workflow,
        "step": letter.step,
        "action": letter.action,
        "at": letter.at,
        "error": letter.error,
    }
