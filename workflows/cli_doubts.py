"""The commands for steps in doubt: doubts, resolve.

The law: that of the other commands for runs: answers on stdout, all else on stderr.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..tasks.errors import ConfigurationError, ParameterError
from ..tasks.terminal import console, hint
from . import show
from .doubts import UNSAID
from .records import Json
from .session import AsJson, RunId, journal
from .summaries import Summaries


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("doubts")(doubts)
    app.command("resolve")(resolve)


def doubts(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only those of this run.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List steps in doubt.

    Their worker was lost in the midst of an effect that may happen once only.
    """
    with journal() as client:
        run = None if run_id is None else Summaries(client.database).find(run_id)
        found = client.doubts(run, limit=limit)
        if as_json:
            typer.echo(show.dumps([dataclasses.asdict(each) for each in found]))
            return
        if not found:
            hint("nothing is in doubt")
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("run", "workflow", "step", "action", "attempt", "worker", ""):
            table.add_column(title, overflow="fold")
        for each in found:
            next_ = (
                Text("its probe is asked", "cyan") if each.probing else Text("a person has to say", "yellow")
            )
            row = (each.run, each.workflow, each.step, each.action, str(each.attempt), each.worker)
            table.add_row(*row, next_)
        console().print(table)
        if not all(each.probing for each in found):
            hint(
                "look whether it has happened, then: trellis resolve RUN STEP --done JSON | --retry | --fail TEXT"
            )


def resolve(
    run_id: RunId,
    step: Annotated[str, typer.Argument(metavar="STEP", help="The name of a step in doubt.")],
    done: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="It has happened; this is the step's result.", show_default=False),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="It has not happened: the step runs again.")] = False,
    fail: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Nobody knows: the step fails with this message.", show_default=False
        ),
    ] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="Who says so.", show_default=False)] = "",
) -> None:
    """Say what became of the effect of a step in doubt."""
    if (done is not None) + retry + (fail is not None) != 1:
        raise ConfigurationError("say what became of it: one of --done JSON, --retry and --fail TEXT")
    result: Json = UNSAID
    if done is not None:
        try:
            result = json.loads(done)
        except ValueError as error:
            raise ParameterError({"--done": f'is not JSON: {error}; a text stands in ""'}) from error
    with journal() as client:
        run = Summaries(client.database).find(run_id)
        client.resolve(run, step, done=result, retry=retry, fail=fail, by=by)
        what = "runs again" if retry else "fails" if fail is not None else "is done"
        typer.echo(f"{step} {what}")
