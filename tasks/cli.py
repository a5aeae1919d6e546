"""The command `trellis`.

The law: an error that Trellis knows is one clear message on stderr, without a traceback; exit 2 when the
person wrote something wrong (a setting, a definition, an option), 1 when something went wrong. The floors
above join by the entry-point group "trellis.commands"; this module knows none of them.
"""

from __future__ import annotations

import io
import os
import sys
from enum import Enum
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from . import doctor as doctor_
from . import schema, services, stack
from .errors import ConfigurationError, DefinitionError, EntryError, NotFound, TrellisError
from .imports import check_imports
from .places import HOST
from .settings import PREFIX, Settings, load

GROUP = "trellis.commands"


class Pool(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """Celery's ways to run tasks side by side."""

    prefork = "prefork"
    threads = "threads"
    solo = "solo"
    gevent = "gevent"
    eventlet = "eventlet"


Home = Annotated[
    Path | None,
    typer.Option(help="Folder of the stack's data, logs and files; .trellis by default.", show_default=False),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        help="A module with actions and workflows; may be given again. Adds to TRELLIS_IMPORTS.",
        metavar="MODULE",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        min=1, help="Steps that run side by side; the number of cores by default.", show_default=False
    ),
]
PoolOption = Annotated[
    Pool | None, typer.Option(help="How they run side by side; prefork by default.", show_default=False)
]

app = typer.Typer(
    name="trellis",
    help="Durable workflows and AI agents on Celery.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trellis {version('celery-trellis')}")
        raise typer.Exit


@app.callback()
def root(
    shown: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Durable workflows and AI agents on Celery."""


@app.command()
def up(
    home: Home = None,
    flower: Annotated[bool, typer.Option("--flower/--no-flower", help="Start Flower as well.")] = True,
    concurrency: Concurrency = None,
    pool: PoolOption = None,
    imports: Imports = None,
) -> None:
    """Run the whole stack here: Postgres, Redis, migrations, a worker, beat and Flower.

    Where TRELLIS_DATABASE_URL and TRELLIS_BROKER_URL are set, only worker, beat and Flower.
    """
    console = Console(soft_wrap=False)
    settings = _settings(imports, home)
    if settings.log_format == "auto" and console.is_terminal:
        settings = settings.model_copy(update={"log_format": "console"})
    stack.up(settings, stack.Options(flower, concurrency, pool.value if pool else None), console)


@app.command()
def worker(
    queues: Annotated[
        str | None,
        typer.Option(
            help="Queues to consume, separated by commas; TRELLIS_DEFAULT_QUEUE and the ticks by default.",
            show_default=False,
        ),
    ] = None,
    concurrency: Concurrency = None,
    pool: PoolOption = None,
    name: Annotated[
        str | None, typer.Option(help="Name of this worker, before the @.", show_default=False)
    ] = None,
    imports: Imports = None,
) -> None:
    """Run a worker."""
    settings = _settings(imports)
    settings.need_database()
    settings.need_broker()
    check_imports(settings.imports)
    wanted = [queue.strip() for queue in (queues or "").split(",") if queue.strip()]
    become(
        services.worker_command(
            settings, queues=wanted, concurrency=concurrency, pool=pool.value if pool else None, name=name
        ),
        settings,
    )


@app.command()
def beat(
    schedule: Annotated[
        Path | None,
        typer.Option(
            help="File in which beat remembers what it sent; below the home by default.", show_default=False
        ),
    ] = None,
) -> None:
    """Run beat, which sends the tick of recovery and schedules. Any number of them is safe."""
    settings = _settings(None)
    settings.need_broker()
    if schedule is None:
        schedule = settings.home / "beat-schedule"
        schedule.parent.mkdir(parents=True, exist_ok=True)
    become(services.beat_command(settings, schedule), settings)


@app.command()
def flower(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="5555 by default.", show_default=False)
    ] = None,
    address: Annotated[
        str, typer.Option(help="Where it listens. Give it a password before you open it.")
    ] = HOST,
) -> None:
    """Run Flower, which shows workers and tasks in the browser."""
    settings = _settings(None)
    settings.need_broker()
    port = port or settings.flower_port
    command = services.flower_command(port, address)
    if not services.port_is_free(port, address):
        raise ConfigurationError(
            f"port {port} on {address} is taken: choose another with --port or {PREFIX}FLOWER_PORT"
        )
    become(command, settings)


@app.command()
def migrate() -> None:
    """Bring the database's tables to this version. Safe to run twice, also at once."""
    before = load()
    revision = schema.migrate(before.need_database())
    typer.echo(f"the tables are at {revision}")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check Postgres, Redis, workers and beat; exit 0 when all is well, 1 when something is not."""
    checks = doctor_.examine(load())
    if as_json:
        typer.echo(doctor_.as_json(checks))
    else:
        doctor_.show(checks, Console())
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _settings(imports: list[str] | None, home: Path | None = None) -> Settings:
    """The settings, with what the command line adds."""
    settings = load() if home is None else load(home=home)
    added = [name.strip() for option in imports or () for name in option.split(",") if name.strip()]
    return settings.model_copy(update={"imports": tuple(dict.fromkeys((*settings.imports, *added)))})


def become(command: list[str], settings: Settings) -> NoReturn:
    """Go on as another program: it keeps our pid, so signals of a shell or a container reach it."""
    env = {**os.environ, f"{PREFIX}IMPORTS": ",".join(settings.imports)}
    sys.stdout.flush()
    os.execve(command[0], command, env)  # noqa: S606 - no shell is wanted


def _join_others() -> None:
    """Add the commands of the floors above. One that is broken is named and left out."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            entry.load()(app)
        except Exception as error:
            _complain(f"the commands of {entry.name!r} ({entry.value}) are left out: {error!r}")


def _complain(message: str) -> None:
    console = Console(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def main() -> Any:
    """The entry point of the command `trellis`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # an old terminal shows \u2713 for a tick mark, and goes on
    _join_others()
    try:
        return app()
    except (ConfigurationError, DefinitionError, EntryError, NotFound) as error:
        _complain(str(error))
        return 2
    except TrellisError as error:
        _complain(str(error))
        return 1
