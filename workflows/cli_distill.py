"""The command `trellis memory distill`, which starts a run and so belongs to this floor.

The law: that of the other commands (cli.py). What is wrong with the choice of a model is told before a run is started.
The workflow is imported when the command is called: defining actions reads the settings, and `trellis --version` does
not.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from ..memory import cli_memory, language
from ..memory.entries import trust_of
from ..memory.scope import Scope
from ..tasks.terminal import hint
from . import show
from .client import Client
from .records import Run
from .session import AsJson, journal, settings_for
from .states import RunState
from .terminal import exit_code, watch_to_end


def register() -> None:
    """Add the command to its group."""
    cli_memory.app.command("distill")(distill)


def distill(
    tenant: cli_memory.Tenant = "default",
    agent: cli_memory.Agent = "",
    episode: Annotated[str | None, typer.Option(help="Only this episode.", show_default=False)] = None,
    min_trust: Annotated[
        int,
        typer.Option(
            min=0,
            max=3,
            help="Leave out what is trusted less: 0 reads all, 1 nothing from the web, 2 no tools.",
        ),
    ] = 0,
    calls: Annotated[int, typer.Option(min=1, help="Calls of the language model at most.")] = 1_000,
    skip: Annotated[
        bool,
        typer.Option("--skip-unusable", help="Leave out entries for which the model gives no usable answer."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch the run until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make facts of episodes, by the language model of TRELLIS_LLM.

    A durable run that goes on where the last one has stopped. Facts have keys that begin with distilled/, say in their
    metadata from which entries they are, and are trusted no further than those. Prints the run's id.
    """
    settings = settings_for()
    language.check(settings)
    Scope(tenant, agent)
    trust_of("min_trust", min_trust)
    distilling = importlib.import_module(".distilling", __package__)
    asked: dict[str, Any] = {"episode": episode, "min_trust": min_trust, "calls": calls, "skip": skip}
    with journal(settings) as client:
        run = distilling.start(client, tenant, agent, **asked)
        if wait:
            run = watch_to_end(client, run, as_json=as_json)
            if not as_json:
                _tell(client, run)
            raise typer.Exit(exit_code(run))
        typer.echo(show.dumps(show.run_json(run)) if as_json else run.id)
        if any(run.params[name] != value for name, value in asked.items()):
            hint("a run for this agent is open, with other options: this is that one", "yellow")
        hint(f"watch it: trellis show {run.id} --watch")


def _tell(client: Client, run: Run) -> None:
    """What became of the entries, in one line."""
    if run.state is not RunState.SUCCEEDED:
        return
    state: Any = client.result(run, "distill")
    made = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(state["outcomes"].items()))
    calls = "1 call" if state["calls"] == 1 else f"{state['calls']:,} calls"
    hint(f"{state['read']:,} of {state['rows']:,} entries read, {calls}: {made or 'no facts'}")
    if state["read"] < state["rows"] and state["calls"] >= run.params["calls"]:
        hint("the calls were used up: the next run goes on", "yellow")
