"""One person at one terminal: what is printed where, and what Ctrl-C means.

The law: stdout is for answers, stderr for everything said beside them. Whoever stops watching is asked what
becomes of the run; where nobody can be asked, the run goes on, since it lives in the journal and not here.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.text import Text

from ..tasks.terminal import console, hint
from . import live, show
from .client import Client
from .records import Run
from .states import RunState
from .summaries import Summaries
from .views import view_on

_NODES = 40  # lines of a table
_INCIDENTS = 10
_RESULTS = 5
_RESULT_CHARACTERS = 400
_DETACHED = 130  # what shells give a command that Ctrl-C ended


def watch(client: Client, run: Run, *, as_json: bool) -> Run:
    """Show a run until it is over, or until the person has had enough. Raises typer.Exit for the latter."""
    where, watched = console(stderr=as_json), live.Watch(client, run)
    while True:
        try:
            return watched.follow(view_on(where))
        except KeyboardInterrupt:
            choice = _ask(where)
            if choice == "c":
                client.cancel(run)  # the next look sees it
            elif choice == "d":
                hint(
                    f"the run goes on\n  watch it: trellis show {run.id} --watch\n  end it:   trellis cancel {run.id}"
                )
                raise typer.Exit(_DETACHED) from None


def _ask(where: Console) -> str:
    """`d`, `c` or `w`."""
    if not (where.is_terminal and sys.stdin.isatty()):
        return "d"
    try:
        while True:
            answer = where.input(Text("\n[d]etach and let it run, [c]ancel it, or [w]atch on? ", "bold"))
            if answer.strip().lower()[:1] in ("d", "c", "w"):
                return answer.strip().lower()[:1]
    except (KeyboardInterrupt, EOFError):
        return "d"


def report(client: Client, run: Run) -> None:
    """Print how a run stands: its steps, its error or its results."""
    out, summaries = console(), Summaries(client.database)
    progress = client.progress(run)
    failed = summaries.incidents(run.id, _INCIDENTS, kind="step.failed")
    parts = [
        show.table(summaries.nodes(run.id, _NODES), progress),
        show.failures(run, failed, progress),
        show.failure(run),
    ]
    if run.state is RunState.SUCCEEDED:
        parts.append(show.results(*summaries.endings(run.id, _RESULTS, _RESULT_CHARACTERS)))
    out.print(show.headline(run, None if run.finished else summaries.age(run.id)), soft_wrap=True)
    for part in parts:
        if part is not None:
            out.print()
            out.print(part)


def report_json(client: Client, run: Run, *, steps: bool) -> None:
    """Print how a run stands for a program."""
    typer.echo(
        show.dumps(
            show.run_document(
                run,
                client.progress(run),
                client.steps(run) if steps else None,
                client.result(run) if run.state is RunState.SUCCEEDED else None,
            )
        )
    )


def watch_to_end(client: Client, run: Run, *, as_json: bool) -> Run:
    """Show a run until it is over, then how it stands. Raises typer.Exit where the person has had enough."""
    ended = watch(client, run, as_json=as_json)
    if as_json:
        report_json(client, ended, steps=False)
    else:
        report(client, ended)
    return ended


def exit_code(run: Run) -> int:
    """0 for a run that succeeded, 1 for one that did not."""
    return 0 if run.state is RunState.SUCCEEDED else 1
