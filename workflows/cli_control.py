"""The commands that control runs: retry, dead letters, pauses, reruns.

The law: that of the other commands for runs. What cannot be done for one of several runs is said, the others are done,
and the exit code is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..tasks import spans
from ..tasks.errors import ConfigurationError, NotFound, StateError
from ..tasks.terminal import console, hint
from . import misfit, modules, registry, show, words
from .cli_bulk import SinceOption
from .cli_changes import ChangedInputs, ChangedParams, Changes, FromStep
from .client import Client
from .records import DeadLetter, Run
from .retention import FOREVER
from .session import journal, settings_for, strange
from .summaries import Summaries, abbreviated
from .terminal import exit_code, report, report_json, watch

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
RunIds = Annotated[list[str], typer.Argument(metavar="RUN", help="Ids of runs, or the beginnings of them.")]
SomeRuns = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN]", help="Ids of runs, or the beginnings of them.")
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, or the beginning of it.")]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        help="A module with actions and workflows; may be given again. Adds to TRELLIS_IMPORTS.",
        metavar="MODULE",
    ),
]

retention = typer.Typer(no_args_is_help=True, help="How long runs are kept after their end.")
dead = typer.Typer(no_args_is_help=True, help="Dead letters: steps that failed for good, with their runs.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    commands: dict[str, Callable[..., None]] = {
        "retry": retry,
        "rerun": rerun,
        "pause": pause,
        "resume": resume,
        "check": check,
    }
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
    retention.command("set")(keep)
    retention.command("list")(list_kept)
    app.add_typer(retention, name="retention")


def retry(run_ids: RunIds) -> None:
    """Go on with failed or cancelled runs, in place.

    Their failed and cancelled steps are open again, with all their attempts; what succeeded stays. Exits with 1
    where one of the runs cannot be retried.
    """
    with journal() as client:
        for_each(client, run_ids, client.retry, "retried", "is open already: nothing is to be retried")


def rerun(
    run_id: RunId,
    from_step: FromStep = None,
    params: ChangedParams = None,
    inputs: ChangedInputs = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch the run until it is over.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Repeat a run as a new one, with the finished results that still hold.

    Prints the new run's id. What is computed again: the step of --from, what the changes reach, what did not
    succeed, and all that is behind one of these.
    """
    settings = settings_for(imports)
    modules.import_all(settings.imports)
    with journal(settings) as client:
        old = client.get(Summaries(client.database).find(run_id))
        changes = Changes(from_step, params or (), inputs or ())
        new = client.rerun(old, **changes.read(client.definition(old)))
        if wait:
            new = watch(client, new, as_json=as_json)
            (report_json(client, new, steps=False) if as_json else report(client, new))
            raise typer.Exit(exit_code(new))
        typer.echo(show.dumps(show.run_json(new)) if as_json else new.id)


def pause(
    run_ids: SomeRuns = None,
    workflow: Annotated[
        str | None, typer.Option(help="All open runs of this workflow, and new ones.", show_default=False)
    ] = None,
    queue: Annotated[
        str | None, typer.Option(help="All that is sent to this queue.", show_default=False)
    ] = None,
) -> None:
    """Let nothing begin any more of runs, of a workflow, or on a queue.

    Bodies that run go on, and their results count. Without arguments: list the workflows and queues that are
    paused.
    """
    with journal() as client:
        if not (run_ids or workflow or queue):
            for each in client.pauses():
                typer.echo(f"{each.kind} {each.name} paused since {words.moment(each.at)}")
            raise typer.Exit
        for kind, name in (("workflow", workflow), ("queue", queue)):
            if name is not None:
                new = client.pause(workflow=workflow) if kind == "workflow" else client.pause(queue=queue)
                typer.echo(f"{kind} {name} paused{'' if new else ' already'}")
        _warn_of(client, workflow)
        if run_ids:
            for_each(client, run_ids, client.pause, "paused", "is paused already")


def resume(
    run_ids: SomeRuns = None,
    workflow: Annotated[
        str | None, typer.Option(help="All paused runs of this workflow.", show_default=False)
    ] = None,
    queue: Annotated[str | None, typer.Option(help="This queue.", show_default=False)] = None,
) -> None:
    """Let paused runs, a workflow or a queue go on, each step where it stood."""
    with journal() as client:
        late = 0
        for kind, name in (("workflow", workflow), ("queue", queue)):
            if name is not None:
                found = client.resume(workflow=workflow) if kind == "workflow" else client.resume(queue=queue)
                if found:
                    typer.echo(f"{kind} {name} resumed")
                else:
                    late += 1
                    hint(f"{kind} {name} is not paused", "yellow")
        if run_ids:
            for_each(client, run_ids, client.resume, "resumed", "is not paused", late)
        elif workflow is None and queue is None:
            raise ConfigurationError(
                "say what to resume: runs, --workflow or --queue; `trellis pause` lists them"
            )
        raise typer.Exit(1 if late else 0)


def check(
    queues: Annotated[
        list[str] | None,
        typer.Option("--queue", metavar="QUEUE", help="Only steps that are sent there; may be given again."),
    ] = None,
    imports: Imports = None,
) -> None:
    """Check before a deployment that this code fits the runs that are open.

    Compares their definitions with the actions of the imported modules: exits with 1 and names the runs where an action
    is gone, or does not take the inputs that it is given. Steps that bodies append are in no definition: they are told
    when a worker has met and put back one.
    """
    settings = settings_for(imports)
    modules.import_all(settings.imports)
    if not settings.imports:
        hint(
            "no module is imported, so no action is known: name modules with --import or in TRELLIS_IMPORTS",
            "yellow",
        )
    with journal(settings) as client:
        count = misfit.check(client.database, registry.actions, settings.default_queue, queues or None)
        typer.echo(f"this code fits the open runs ({words.plural(count, 'definition')})")


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


def discard(
    run_ids: RunIds,
    step: Annotated[
        str | None, typer.Option(help="Only the dead letter of this step.", show_default=False)
    ] = None,
) -> None:
    """Remove the dead letters of runs. The runs stay as they are. Exits with 1 where one of them had none."""
    with journal() as client:
        summaries = Summaries(client.database)
        none = False
        for run in dict.fromkeys([summaries.find(each) for each in run_ids]):
            try:
                count = client.discard(run, step)
            except NotFound as error:
                none = True
                hint(str(error), "yellow")
                continue
            none = none or not count
            typer.echo(f"{run} {words.plural(count, 'dead letter')} discarded")
        raise typer.Exit(1 if none else 0)


def keep(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="The name of a workflow.")],
    span: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPAN|forever|default]",
            help="So long after their end (12h, 30d), for ever, or as TRELLIS_RETENTION_DAYS says.",
            show_default=False,
        ),
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN|default",
            help="Their events for a shorter time; by default as long.",
            show_default=False,
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN|default",
            help="Their artifacts for a shorter time; by default as long.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Keep the runs of a workflow, or what belongs to them, for so long after their end.

    Then runs are deleted, a few at each tick, with steps, results, events and artifacts. A run that a rerun of it,
    or the run that it was a step of, needs stays as long as that one. Events and artifacts may go earlier.
    """
    given = {"runs": span, "events": events, "artifacts": artifacts}
    said = {what: (text, _kept(text)) for what, text in given.items() if text is not None}
    if not said:
        raise ConfigurationError(
            "say how long, and what: SPAN for the runs, --events SPAN or --artifacts SPAN"
        )
    with journal() as client:
        client.retain(
            workflow, **{"keep" if what == "runs" else what: kept for what, (_, kept) in said.items()}
        )
        for what, (text, _) in said.items():
            typer.echo(f"{what} of {workflow} are kept: {text}")
        _warn_of(client, workflow)


def list_kept() -> None:
    """List how long runs are kept."""
    with journal() as client:
        days = client.settings.retention_days
        typer.echo(f"all others: {'forever' if days is None else f'{days:g}d'} (TRELLIS_RETENTION_DAYS)")
        for each in client.retentions():
            parts = {"events": each.events, "artifacts": each.artifacts}
            shorter = "".join(
                f", {part} {spans.said(span)}" for part, span in parts.items() if span is not None
            )
            typer.echo(f"{each.workflow}: {_said(each.keep)}{shorter}")


def _said(keep: timedelta | None) -> str:
    if keep is None:
        return "default"
    return "forever" if keep >= FOREVER else spans.said(keep)


def _warn_of(client: Client, workflow: str | None) -> None:
    """A slip in a name would pause, or keep, nothing at all."""
    meant = strange(client, workflow)
    if meant:
        hint(f"no run of workflow {workflow!r} was ever started{meant}", "yellow")


def _kept(text: str) -> timedelta | None:
    if text == "default":
        return None
    return timedelta.max if text == "forever" else spans.span(text)


def for_each(
    client: Client, run_ids: list[str], verb: Callable[[Run], bool], done: str, already: str, late: int = 0
) -> None:
    """Apply a verb to each of these runs, say what became of it, and leave with 1 where one was refused."""
    summaries = Summaries(client.database)
    found = [client.get(each) for each in dict.fromkeys(summaries.find(each) for each in run_ids)]
    refused = late
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
        "at": letter.at.isoformat(),
        "error": letter.error,
    }
