"""The commands of the memory layer: each group is a module of its own, and joins the command here."""

from __future__ import annotations

import typer

from . import cli_audit, cli_memory


def register(root: typer.Typer) -> None:
    """Add the commands to the application."""
    root.add_typer(cli_audit.app, name="audit")
    cli_memory.register(root)
