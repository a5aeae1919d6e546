"""The command `trellis memory reindex`, which starts a run and so belongs to this floor.

The law: that of the other commands (cli.py). What is wrong with a model is told before a run is started. The workflow
is imported when the command is called: defining actions reads the settings, and `trellis --version` does not.
"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from ..memory import cli_memory
from ..memory.embedders import choose
from ..tasks.terminal import hint
from . import show
from .session import AsJson, journal, settings_for
from .terminal import exit_code, watch_to_end


def register() -> None:
    """Add the command to its group."""
    cli_memory.app.command("reindex")(reindex)


def reindex(
    model: Annotated[
        str | None,
        typer.Option(
            help="The embedder, as TRELLIS_EMBEDDER says it; what that says without it.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the old vectors, for processes that still search them.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch the run until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the vectors of all memories anew, by another model.

    A durable run, of all tenants: workers copy some rows at a time and go on where they were. The old vectors serve
    until all are made, then they are dropped. Prints the run's id.
    """
    settings = settings_for()
    wanted = model or settings.embedder
    choose.check(settings.model_copy(update={"embedder": wanted}))
    reembedding = importlib.import_module(".reembedding", __package__)
    with journal(settings) as client:
        run = reembedding.start(client, wanted, keep=keep)
        if wait:
            run = watch_to_end(client, run, as_json=as_json)
            raise typer.Exit(exit_code(run))
        typer.echo(show.dumps(show.run_json(run)) if as_json else run.id)
        if run.params["model"] != wanted:
            hint(f"a run that makes vectors of {run.params['model']} is open: this is that one", "yellow")
        hint(f"watch it: trellis show {run.id} --watch")
        if wanted != settings.embedder:
            hint(f"when it is over, start everything anew with TRELLIS_EMBEDDER={wanted}")
