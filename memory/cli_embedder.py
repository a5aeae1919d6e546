"""The command `trellis embedder`.

The law: it is `trellis worker` on the embed queue, in a pool where each process has one model; what is wrong with
the embedder is told before any process starts.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated

import typer

from ..tasks import services
from ..tasks.cli import become
from ..tasks.doctor import Check
from ..tasks.errors import ConfigurationError, TrellisError
from ..tasks.settings import Settings, load
from .embedders import choose

MOST = 4  # models that a worker loads unasked: each takes about 450 MB, most of it torch


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("embedder")(embedder)


def embedder(
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes, each with a model on a core; the number of cores by default, four at most.",
            show_default=False,
        ),
    ] = None,
    to_onnx: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the model there as ONNX with weights of eight bits, and end.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of this worker, before the @.", show_default=False)
    ] = None,
) -> None:
    """Run a worker that turns texts into vectors for all others (TRELLIS_EMBEDDER_WHERE=queue)."""
    settings = load()
    if to_onnx is not None:
        _export(settings, to_onnx)
        return
    settings.need_database()
    settings.need_broker()
    choose.check(settings)
    command = services.worker_command(
        settings,
        queues=[settings.embed_queue],
        concurrency=concurrency or cores(),
        pool="prefork",
        name=name or "embedder",
    )
    # Steps of users have no business here: an embedder needs none of their modules.
    become(command, settings.model_copy(update={"imports": ()}))


def cores() -> int:
    """Processes of a worker that is not told how many."""
    return min(os.cpu_count() or 1, MOST)


def checks(settings: Settings) -> list[Check]:
    """For `trellis doctor`: the embedder that was chosen. Nothing where none was: not everyone uses the memory."""
    if "embedder" not in settings.model_fields_set:
        return []
    where = (
        "in each process" if settings.embedder_where == "process" else f"on the queue {settings.embed_queue}"
    )
    try:
        choice = choose.parse(settings.embedder)
        if settings.embedder_where == "process":
            choose.check(settings)
    except TrellisError as error:
        found, _, todo = str(error).partition(": ")
        return [Check("embedder", False, found, todo)]
    return [Check("embedder", True, f"{choice}, {where}")]


def _export(settings: Settings, folder: Path) -> None:
    """Make a folder for `onnx:`."""
    choice = choose.parse(settings.embedder)
    if choice.kind != "sentence-transformers":
        raise ConfigurationError(
            f"TRELLIS_EMBEDDER={choice}: only models of sentence-transformers become ONNX"
        )
    export = importlib.import_module("trellis.memory.embedders.export")  # with all that it needs
    for line in export.told(export.export(choice.name, folder)):
        typer.echo(line)
