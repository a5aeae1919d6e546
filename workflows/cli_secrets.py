"""The command for secrets at rest: `trellis secrets rotate`.

The law: that of all commands: what was asked for on stdout, all else on stderr.
"""

from __future__ import annotations

import typer

from .rotation import Rotated, rotate
from .session import journal, settings_for

app = typer.Typer(help="Keys of what the journal keeps encrypted.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keys of what the journal keeps encrypted."""


@app.command("rotate")
def rotate_keys() -> None:
    """Encrypt everything with the first key of TRELLIS_SECRET_KEYS; the others open nothing that is kept then.

    Stopped in the midst, it goes on with the next call.
    """
    settings = settings_for()

    def told(done: Rotated) -> None:
        typer.echo(f"{done.runs:,} runs, {done.steps:,} steps …", err=True)

    with journal(settings) as client:
        done = rotate(client.database, settings, told)
    typer.echo(
        f"{done.runs:,} runs and {done.steps:,} steps more are under key {next(iter(settings.encrypting_keys()))!r} now"
    )
