"""The commands by which people answer runs, and ask them: signal, approve, reject, approvals, why.

The law: that of the other commands for runs: answers on stdout, all else on stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..tasks.errors import ParameterError
from ..tasks.terminal import console, hint
from . import show, words
from .client import Client
from .records import Approval, Run
from .session import journal
from .summaries import Summaries

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, or the beginning of it.")]
StepName = Annotated[str, typer.Argument(metavar="STEP", help="The name of the step that waits.")]
By = Annotated[str, typer.Option(help="Who decides.", metavar="NAME")]
Comment = Annotated[str, typer.Option(help="Why.", show_default=False)]
Shown = Annotated[
    str | None,
    typer.Option(
        help="The digest of what was looked at, as `trellis approvals` shows it; refused where it shows something "
        "else by now.",
        metavar="DIGEST",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    commands: dict[str, Callable[..., None]] = {
        "signal": signal,
        "approvals": approvals,
        "approve": approve,
        "reject": reject,
        "why": why,
    }
    for name, command in commands.items():
        app.command(name)(command)


def signal(
    run_id: RunId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name.")],
    payload: Annotated[
        str, typer.Option(help="Its value, as JSON; what is no JSON is a text.", metavar="JSON")
    ] = "null",
    id: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="Sent again under this id it counts once.", show_default=False)
    ] = None,
) -> None:
    """Send a signal to a run.

    It is kept until a step waits for it.
    """
    with journal() as client:
        run = _run(client, run_id)
        new = client.signal(run, name, _value(payload), id=id)
        typer.echo(f"{run.id} {'told' if new else 'was told before'}")


def approvals(
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Only those of this run.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what waits for approval, with what it shows."""
    with journal() as client:
        found = client.approvals(None if run_id is None else _run(client, run_id), limit=limit)
        if as_json:
            typer.echo(show.dumps([_json(each) for each in found]))
        elif found:
            out = console()
            out.print(_table(found, out.width))
        else:
            hint("nothing waits for approval")


def approve(run_id: RunId, step: StepName, by: By, comment: Comment = "", shown: Shown = None) -> None:
    """Approve what a waiting step shows."""
    with journal() as client:
        run = _run(client, run_id)
        new = client.approve(run, step, by, comment, shown=shown)
        typer.echo(f"{step} {'approved' if new else 'was approved before'} by {by}")


def reject(run_id: RunId, step: StepName, by: By, comment: Comment = "", shown: Shown = None) -> None:
    """Reject what a waiting step shows: it fails."""
    with journal() as client:
        run = _run(client, run_id)
        new = client.reject(run, step, by, comment, shown=shown)
        typer.echo(f"{step} {'rejected' if new else 'was rejected before'} by {by}")


def why(run_id: RunId, as_json: AsJson = False) -> None:
    """Say why a run does not move.

    What each kind of its open steps waits for, and what would end that.
    """
    with journal() as client:
        run = _run(client, run_id)
        reasons = client.why(run)
        if as_json:
            typer.echo(show.dumps([asdict(each) for each in reasons]))
            return
        out = console()
        if run.finished:
            out.print(Text(f"it is over: {run.state}", words.STYLES[run.state.value]))
        elif not reasons:
            out.print("it moves: every open step is waiting for others that run")
        for each in reasons:
            out.print(Text(each.text), soft_wrap=True)
            if each.advice:
                out.print(Text(f"  {each.advice}", "dim"), soft_wrap=True)


def _run(client: Client, run_id: str) -> Run:
    return client.get(Summaries(client.database).find(run_id))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if text[:1] in '{["':
            raise ParameterError({"--payload": f"{text!r} begins like JSON and is none"}) from None
        return text


def _json(asked: Approval) -> dict[str, Any]:
    fields = {name: getattr(asked, name) for name in Approval.__slots__}
    return {**fields, "until": None if asked.until is None else asked.until.isoformat()}


def _table(found: list[Approval] | Any, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "step", "asked", "shown", "digest", "by", "until"):
        table.add_column(name, overflow="fold" if name in ("asked", "shown") else "ellipsis")
    room = max(20, width // 4)
    for each in found:
        table.add_row(
            Text(each.run, "dim"),
            f"{each.workflow}: {each.step}",
            words.one_line(each.message, room),
            words.one_line(json.dumps(each.show, ensure_ascii=False), room),
            each.digest,
            f"{len(each.yes)} of {each.needed}" + (f" ({', '.join(each.who)})" if each.who else ""),
            words.moment(each.until),
        )
    return table
