"""The commands for runs: run, runs, show, cancel, graph, schema.

The law: stdout carries what was asked for and nothing else, with `--json` one JSON document; hints, progress
beside JSON, and errors go to stderr. Exit 0: done, or the run succeeded; 1: it failed or was cancelled; 2:
the command line was wrong; 130: a person stopped watching and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..tasks.app import app as celery
from ..tasks.errors import ConfigurationError, NotFound
from ..tasks.settings import Settings
from ..tasks.terminal import console, hint
from . import (
    arguments,
    cli_answers,
    cli_bulk,
    cli_control,
    cli_distill,
    cli_reindex,
    files,
    modules,
    registry,
    render,
    rollcall,
    show,
    sources,
    words,
)
from .cli_bulk import Asked, SinceOption, Verb
from .cli_changes import ChangedInputs, ChangedParams, Changes, FromStep
from .cli_doubts import register as register_doubts
from .cli_schedules import app as schedules_app
from .cli_secrets import app as secrets_app
from .cli_windows import (
    DebounceKey,
    DebounceMax,
    DebounceWait,
    SingletonKey,
    SingletonWindow,
    debounce_of,
    singleton_of,
)
from .client import Client
from .queries import Queries
from .records import Run
from .session import AsJson, Imports, ParamValues, RunId, strange
from .session import journal as _journal
from .session import settings_for as _settings
from .spec import WorkflowSpec
from .states import RunState
from .summaries import Summaries
from .terminal import exit_code, report, report_json, watch


class Format(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """Kinds of pictures."""

    text = "text"
    mermaid = "mermaid"
    svg = "svg"


class State(str, Enum):  # noqa: UP042
    """States of a run."""

    pending = "pending"
    running = "running"
    paused = "paused"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


_PAST = {
    RunState.SUCCEEDED: "succeeded",
    RunState.FAILED: "failed",
    RunState.CANCELLED: "was cancelled",
}
_SUFFIXES = {".svg": Format.svg, ".mmd": Format.mermaid, ".mermaid": Format.mermaid}


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    commands: dict[str, Callable[..., None]] = {
        "run": run,
        "runs": runs,
        "show": show_run,
        "cancel": cancel,
        "graph": graph,
        "schema": print_schema,
    }
    for name, command in commands.items():
        app.command(name)(command)
    cli_control.register(app)
    cli_answers.register(app)
    register_doubts(app)
    app.add_typer(schedules_app, name="schedules")
    app.add_typer(secrets_app, name="secrets")
    cli_distill.register()
    cli_reindex.register()


def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME",
            help="A definition (.yaml, .json), a Python file (file.py, or file.py:workflow), or the name of a "
            "workflow that an imported module defines or the journal has.",
        ),
    ],
    params: ParamValues = None,
    params_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parameters as a JSON object; -p goes over them.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The same workflow and key give the same run back.", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Begin at this moment, ISO 8601; here without an offset."),
    ] = None,
    delay: Annotated[float | None, typer.Option(help="Begin in so many seconds.", show_default=False)] = None,
    singleton: SingletonKey = None,
    singleton_window: SingletonWindow = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="A text by which the run is found; may be given again."),
    ] = None,
    debounce: DebounceKey = None,
    debounce_wait: DebounceWait = 5.0,
    debounce_max: DebounceMax = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose run it is: tenants take turns.", show_default=False)
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="The run fails if it is not over by then.", show_default=False),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch the run until it is over.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Start a run.

    Prints its id. With --wait watches it instead, then exits with 0 if it succeeded and 1 if it did not.
    """
    once = singleton_of(singleton, singleton_window)
    joined = debounce_of(debounce, debounce_wait, debounce_max)
    with _journal(_settings(imports)) as client:
        workflow = sources.workflow(target, client, partial(rollcall.module_known, celery))
        values = arguments.parse(workflow.spec, params or (), params_file)
        before = None if key is None else _with_key(client, workflow.name, key)
        started = client.start(
            workflow,
            values,
            key=key,
            tags=tags or (),
            at=arguments.moment(at),
            delay=delay,
            singleton=once,
            debounce=joined,
            tenant=tenant,
            deadline=deadline,
        )
        if before is not None:
            hint(
                f"the key {key!r} has this run since {words.moment(before.created_at)}: nothing new was started"
            )
        if wait:
            _end(client, watch(client, started, as_json=as_json), as_json=as_json, steps=False)
        typer.echo(show.dumps(show.run_json(started)) if as_json else started.id)
        if not started.finished:
            hint(f"watch it: trellis show {started.id} --watch")
            advice = _advice(workflow.spec, client.settings)
            if advice is not None:
                hint(advice, "bold yellow")


def runs(
    verb: Annotated[
        Verb | None, typer.Argument(metavar="[VERB]", help="What to do to them; without it, list them.")
    ] = None,
    workflow: Annotated[
        str | None, typer.Option(help="Only runs of this workflow.", show_default=False)
    ] = None,
    state: Annotated[
        State | None,
        typer.Option("--state", "--status", help="Only runs in this state.", show_default=False),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Only runs with this tag; may be given again."),
    ] = None,
    since: SinceOption = None,
    from_step: FromStep = None,
    params: ChangedParams = None,
    inputs: ChangedInputs = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most; for lists.")
    ] = 20,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With a verb: only count them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With a verb: do not ask.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """List runs, newest first, or do something to all of them.

    VERB is retry, rerun, cancel, pause, resume or delete, and means every run that the options say and that it can be
    done to, e.g. `trellis runs --workflow nightly --status failed --since 1d retry`. It counts them and asks first.
    A rerun takes the options of `trellis rerun`, and with one of them it means runs that succeeded as well; values are
    read as the newest of the runs takes them.
    """
    asked = Asked(workflow, None if state is None else state.value, tuple(tags or ()), since)
    moment = asked.moment
    changes = Changes(from_step, params or (), inputs or ())
    cli_bulk.check(verb, changes)
    settings = _settings(imports)
    if changes.given:
        modules.import_all(settings.imports)
    with _journal(settings) as client:
        if verb is not None:
            cli_bulk.do(client, verb, asked, changes, dry_run=dry_run, yes=yes, as_json=as_json)
        found = client.list(asked.workflow, state=asked.state, tags=asked.tags, since=moment, limit=limit)
        if as_json:
            typer.echo(show.dumps([show.run_json(each) for each in found]))
        elif found:
            out = console()
            out.print(show.listing(found, out.width))
            if len(found) == limit:
                more = client.count(asked.workflow, state=asked.state, tags=asked.tags, since=moment)
                if more > limit:
                    hint(f"the newest of {words.at_most(more, 1000, 'run')}; -n shows more")
        else:
            hint(f"no runs{asked}{strange(client, workflow)}")


def show_run(
    run_id: RunId,
    watched: Annotated[bool, typer.Option("--watch", "-w", help="Watch the run until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run.

    Its steps with their states, times and attempts, its error or its results. A map with all its items is one
    line; of many steps those that failed or run are shown, and the first ones.
    """
    with _journal() as client:
        found = client.get(Summaries(client.database).find(run_id))
        if watched:
            _end(client, watch(client, found, as_json=as_json), as_json=as_json, steps=True)
        elif as_json:
            report_json(client, found, steps=True)
        else:
            report(client, found)


def cancel(
    run_ids: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Ids of runs, or the beginnings of them.")
    ],
) -> None:
    """Cancel runs.

    Waiting steps never start; running bodies are told, and stopped if they do not listen. Exits with 1 where one
    of the runs was over already.
    """
    with _journal() as client:
        summaries = Summaries(client.database)
        ids = list(dict.fromkeys(summaries.find(each) for each in run_ids))
        found = [client.get(each) for each in ids]  # a slip in the last one cancels none
        late = 0
        for each in found:
            if client.cancel(each):
                typer.echo(f"{each.id} cancelled")
            else:
                late += 1
                hint(f"{each.id} is over already: it {_PAST[client.get(each).state]}", "yellow")
        raise typer.Exit(1 if late else 0)


def graph(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME|RUN",
            help="A workflow, as for `run`; or a run, whose states are shown as well.",
        ),
    ],
    form: Annotated[
        Format | None, typer.Option("--format", "-f", help="By default that of the output file, or text.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead of to stdout.")
    ] = None,
    imports: Imports = None,
) -> None:
    """Draw a workflow or a run.

    As text, as Mermaid or as SVG; a run with the states of its steps.
    """
    settings = _settings(imports)
    spec, states, added = sources.drawing(target, settings, _journal)
    if form is None:
        form = Format.text if output is None else _SUFFIXES.get(output.suffix.lower(), Format.text)
    drawing = {Format.text: render.text, Format.mermaid: render.mermaid, Format.svg: render.draw}[form](
        spec, states, added
    )
    if output is None:
        typer.echo(drawing, nl=False)
        return
    try:
        output.write_text(drawing, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}") from error
    hint(f"written to {output}")


def print_schema() -> None:
    """Print the schema of definitions.

    A JSON Schema of definition files, for editors and other tools.
    """
    typer.echo(show.dumps(files.schema()))


def _end(client: Client, run: Run, *, as_json: bool, steps: bool) -> NoReturn:
    """Print what became of a run, and leave with the code that says it."""
    if as_json:
        report_json(client, run, steps=steps)
    else:
        report(client, run)
    raise typer.Exit(exit_code(run))


def _with_key(client: Client, workflow: str, key: str) -> Run | None:
    try:
        return Queries(client.database).run_by_key(workflow, key)
    except NotFound:
        return None


def _advice(spec: WorkflowSpec, settings: Settings) -> str | None:
    """What a run of this waits for, if it is anything but its turn."""
    if settings.broker_url is None:
        return "TRELLIS_BROKER_URL is not set, so nobody was told: the run begins with the next tick"
    needs = set()
    for step in spec.steps.values():
        info = registry.actions.get(step.action)
        needs.add((step.action, step.queue or (info and info.queue) or settings.default_queue))
    return rollcall.missing(celery, needs)
