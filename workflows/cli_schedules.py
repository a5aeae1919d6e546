"""The commands for schedules: `trellis schedules …`.

The law: that of the other commands (cli.py). A tick is shown in the time zone of its schedule, since that is the
clock which its cron expression means.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_jsonable_python
from rich.table import Table
from rich.text import Text

from ..tasks.app import app as celery
from ..tasks.errors import ConfigurationError
from ..tasks.terminal import console, hint
from . import arguments, modules, rollcall, show, sources, timetable
from .almanac import Schedule
from .client import Client
from .schedules import apply_declared
from .session import AsJson, Imports, ParamValues, journal, settings_for
from .words import duration, one_line, plural

_SHOWN = "%a %Y-%m-%d %H:%M:%S %Z"
_NEXT = 5

app = typer.Typer(
    help="List, make and manage schedules: runs that start by themselves.",
    invoke_without_command=True,
    no_args_is_help=False,
)

Name = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The name of a schedule.")]
Names = Annotated[list[str], typer.Argument(metavar="SCHEDULE", help="Names of schedules.")]


class Overlap(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """What a tick does while a run of an earlier one is open."""

    skip = "skip"
    queue = "queue"
    cancel = "cancel"
    allow = "allow"


@app.callback()
def list_all(
    context: typer.Context,
    workflow: Annotated[
        str | None, typer.Option(help="Only schedules of this workflow.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the schedules with their next ticks; or make and manage them with one of the commands below."""
    if context.invoked_subcommand is not None:
        return
    with journal() as client:
        found = client.schedules.list(workflow)
    if as_json:
        typer.echo(show.dumps([_document(each) for each in found]))
    elif found:
        console().print(_table(list(found)))
        for each in found:
            if each.problem:
                hint(f"{each.name}: {one_line(each.problem, 300)}", "bold red")
    else:
        of = "" if workflow is None else f" of workflow {workflow!r}"
        hint(f"no schedules{of}; make one with `trellis schedules create`")


Anchor = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="The moment from which --every counts, ISO 8601; now without it.",
        show_default=False,
    ),
]


@app.command()
def create(
    name: Name,
    target: Annotated[str, typer.Argument(metavar="FILE|NAME", help="The workflow, as for `trellis run`.")],
    cron: Annotated[
        str | None,
        typer.Option(
            help="Minute, hour, day of month, month and day of week; or @hourly, @daily, @weekly, @monthly.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(help="Seconds from one tick to the next, instead of --cron.", show_default=False),
    ] = None,
    anchor: Anchor = None,
    timezone: Annotated[
        str, typer.Option(help="The IANA time zone that --cron is read in, and --anchor without an offset.")
    ] = "UTC",
    params: ParamValues = None,
    params_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parameters as a JSON object; -p goes over them.")
    ] = None,
    tick_param: Annotated[
        str | None, typer.Option(help="The parameter that gets the tick, as ISO 8601.", show_default=False)
    ] = None,
    jitter: Annotated[float, typer.Option(help="Runs start up to so many seconds after their tick.")] = 0.0,
    overlap: Annotated[
        Overlap, typer.Option(help="What a tick does while a run of an earlier one is open.")
    ] = Overlap.skip,
    catch_up: Annotated[
        float,
        typer.Option(help="Ticks that an outage kept from firing are made up for within so many seconds."),
    ] = 86_400.0,
    paused: Annotated[bool, typer.Option("--paused", help="Let nothing fire until it is resumed.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change the schedule that has the name.")
    ] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Make a schedule.

    Its runs get the workflow's definition as it is now, until the schedule is replaced. Making the same one again
    changes nothing.
    """
    with journal(settings_for(imports)) as client:
        workflow = sources.workflow(target, client, partial(rollcall.module_known, celery))
        values = arguments.parse(workflow.spec, params or (), params_file)
        begin = None if anchor is None else _anchor(name, anchor, every, timezone)
        made = client.schedules.create(
            name, workflow, cron=cron, every=every, timezone=timezone, params=values, jitter=jitter,
            overlap=overlap.value, catch_up=catch_up, tick_param=tick_param, anchor=begin, paused=paused,
            replace=replace,
        )  # fmt: skip
        _tell(made, as_json=as_json)


@app.command("show")
def show_one(name: Name, as_json: AsJson = False) -> None:
    """Show a schedule with its next ticks."""
    with journal() as client:
        _tell(client.schedules.get(name), as_json=as_json)


@app.command()
def pause(names: Names) -> None:
    """Pause schedules: nothing of them starts, but what is asked for by hand. Open runs go on."""
    with journal() as client:
        for name in _known(client, names):
            client.schedules.pause(name)
            typer.echo(f"{name} paused")


@app.command()
def resume(names: Names) -> None:
    """Resume schedules, with the next tick from now."""
    with journal() as client:
        for name in _known(client, names):
            found = client.schedules.resume(name)
            typer.echo(f"{name} resumed, next tick {_moment(found, found.next_at)}")


@app.command()
def delete(names: Names) -> None:
    """Delete schedules. Their runs stay, and open ones go on."""
    with journal() as client:
        for name in _known(client, names):
            client.schedules.delete(name)
            typer.echo(f"{name} deleted")


@app.command()
def trigger(name: Name, as_json: AsJson = False, imports: Imports = None) -> None:
    """Start a run of a schedule now, whatever its overlap policy says. Prints the run's id."""
    given = settings_for(imports)
    with journal(given) as client:
        modules.import_all(given.imports)
        run = client.schedules.trigger(name)
        typer.echo(show.dumps(show.run_json(run)) if as_json else run.id)
        if not as_json:
            hint(f"watch it: trellis show {run.id} --watch")


@app.command()
def backfill(
    name: Name,
    begin: Annotated[str, typer.Option("--from", metavar="TIME", help="From this moment on, ISO 8601.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Before this moment, ISO 8601.")],
) -> None:
    """Run the ticks of a time that is past.

    Ticks that have a run keep it. The others run one after the other, the oldest first (with --overlap allow at
    once), also while the schedule is paused. A time without an offset is one of the schedule's time zone.
    """
    with journal() as client:
        found = client.schedules.get(name)
        first, last = (_parse(text, found.timezone) for text in (begin, end))
        typer.echo(f"{plural(client.schedules.backfill(name, first, last), 'tick')} queued")


@app.command()
def apply(imports: Imports = None) -> None:
    """Make the schedules that modules declare (`workflow.schedule(…)`), as a worker does when it starts."""
    given = settings_for(imports)
    with journal(given) as client:
        modules.import_all(given.imports)
        made = apply_declared(client.schedules)
        for each in made:
            typer.echo(f"{each.name} next tick {_moment(each, each.next_at)}")
        if not made:
            names = ", ".join(given.imports) or "none: name them with --import"
            hint(f"no module declares a schedule (imported: {names})")


def _known(client: Client, names: list[str]) -> list[str]:
    """The names, each once. Raises NotFound before anything is done: a slip in the last one changes none."""
    return [client.schedules.get(name).name for name in dict.fromkeys(names)]


# --- how a schedule looks


def _table(schedules: list[Schedule]) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("schedule", "workflow", "when", "next", "last", "overlap", "runs", ""):
        found.add_column(title, overflow="fold")
    found.columns[6].justify = "right"
    for each in schedules:
        found.add_row(
            Text(each.name, "bold"),
            each.workflow,
            _when(each),
            Text("paused", "yellow") if each.paused else _moment(each, each.next_at),
            _moment(each, each.last_at),
            each.overlap,
            f"{each.started:,}",
            _remarks(each),
        )
    return found


def _when(schedule: Schedule) -> str:
    if schedule.every is not None:
        return f"every {duration(schedule.every)}"
    zone = "" if schedule.timezone == "UTC" else f" {schedule.timezone}"
    return f"{schedule.cron}{zone}"


def _remarks(schedule: Schedule) -> Text:
    parts = []
    if schedule.queued:
        parts.append((f"{schedule.queued:,} queued", "cyan"))
    if schedule.skipped:
        parts.append((f"{schedule.skipped:,} skipped", "yellow"))
    if schedule.problem:
        parts.append(("cannot start", "bold red"))
    return Text(", ").join(Text(text, style) for text, style in parts)


def _moment(schedule: Schedule, at: datetime | None) -> str:
    return "-" if at is None else timetable.local(at, schedule.timezone).strftime(_SHOWN)


def _tell(schedule: Schedule, *, as_json: bool) -> None:
    if as_json:
        typer.echo(show.dumps(_document(schedule)))
        return
    out = console()
    out.print(_table([schedule]))
    if schedule.upcoming():
        out.print("\nnext ticks", style="dim")
        for tick in schedule.upcoming(_NEXT):
            out.print(f"  {_moment(schedule, tick)}")
    if schedule.missed_at is not None:
        hint(
            f"missed since {_moment(schedule, schedule.missed_at)}: older than the catch-up window", "yellow"
        )
    if schedule.problem:
        hint(one_line(schedule.problem, 1000), "bold red")


def _document(schedule: Schedule) -> dict[str, object]:
    shown: dict[str, object] = to_jsonable_python(dataclasses.asdict(schedule))
    return {**shown, "upcoming": [timetable.stamp(tick) for tick in schedule.upcoming(_NEXT)]}


def _anchor(name: str, text: str, every: float | None, timezone: str) -> datetime:
    """Raises ConfigurationError for no time, or where nothing counts from it; DefinitionError for no time zone."""
    if every is None:
        raise ConfigurationError(
            "--anchor is the moment from which --every counts: give --every, or leave it out"
        )
    timetable.check_zone(name, timezone)
    return _parse(text, timezone)


def _parse(text: str, timezone: str) -> datetime:
    try:
        return timetable.moment_of(text, timezone)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a time: write 2026-03-29, 2026-03-29T02:00 or 2026-03-29T02:00:00+01:00"
        ) from error
