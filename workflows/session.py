"""What every command that touches runs begins with: the settings, and a client of a database that fits.

The law: a command says in one line what is missing, before it does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ..tasks import schema
from ..tasks.database import connect
from ..tasks.errors import CommunicationError
from ..tasks.hints import choices
from ..tasks.logs import configure
from ..tasks.settings import Settings, load
from . import live, words
from .client import Client
from .queries import Queries
from .summaries import Summaries

Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        help="A module with actions and workflows; may be given again. Adds to TRELLIS_IMPORTS.",
        metavar="MODULE",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, or the beginning of it.")]
ParamValues = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="KEY=VALUE", help="A parameter; lists and objects as JSON."),
]


def settings_for(imports: list[str] | None = None) -> Settings:
    """The settings with what the command line adds. Logs go to stderr: warnings, and more if asked for."""
    settings = load()
    level = "warning" if settings.log_level == "info" else settings.log_level
    configure(settings.model_copy(update={"log_level": level}))
    names = tuple(dict.fromkeys((*settings.imports, *(imports or ()))))
    return settings.model_copy(update={"imports": names})


@contextmanager
def journal(settings: Settings | None = None) -> Iterator[Client]:
    """A client of a database that is there and has the right tables.

    Raises CommunicationError, SchemaMismatch, ConfigurationError.
    """
    settings = settings or settings_for()
    with connect(settings.need_database(), connect_timeout=settings.connect_timeout) as connection:
        schema.check(connection)
    try:
        with Client(settings) as client:
            yield client
    except live.AWAY as error:
        raise CommunicationError(
            f"Postgres does not answer any more: {words.one_line(str(error), 300)}"
        ) from error


def strange(client: Client, workflow: str | None) -> str:
    """What may have been meant by a workflow of which nothing was ever started; empty for one that is known."""
    if workflow is None or Queries(client.database).latest_definition(workflow) is not None:
        return ""
    return choices(workflow, Summaries(client.database).workflows(), "the workflows are")
