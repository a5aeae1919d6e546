"""The commands for the audit log: `trellis audit …`.

The law: that of all commands: answers on stdout, all else on stderr; exit 1 where the log does not verify.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..tasks import schema
from ..tasks.database import Database, connect
from ..tasks.errors import ParameterError
from ..tasks.settings import load
from ..tasks.spans import moment
from ..tasks.terminal import console
from .audit import AuditLog
from .history import Filter, History, document, write_csv, write_json_lines

app = typer.Typer(help="Read, verify and export the audit log.", no_args_is_help=True)

_SHOWN = 20  # findings
_LONG = 40  # characters of one detail in a table: digests take 64


class Form(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """How rows are written."""

    jsonl = "jsonl"
    csv = "csv"


Action = Annotated[str | None, typer.Option(help="Only this action, e.g. run.started.", show_default=False)]
Actor = Annotated[str | None, typer.Option(help="Only what this one did.", show_default=False)]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.", show_default=False)]
Target = Annotated[
    str | None, typer.Option(help="Only what was done to this, e.g. schedule:nightly.", show_default=False)
]
RunOption = Annotated[
    str | None, typer.Option("--run", help="Only what concerns this run.", show_default=False)
]
OutcomeOption = Annotated[
    str | None,
    typer.Option("--outcome", help="Only what went so: done, refused or failed.", show_default=False),
]
Since = Annotated[
    str | None,
    typer.Option(help="Not before: a time (ISO 8601), or an age as 2d, 3h, 20m.", show_default=False),
]
Until = Annotated[str | None, typer.Option(help="Before: a time (ISO 8601), or an age.", show_default=False)]


@contextmanager
def _database() -> Iterator[Database]:
    settings = load()
    with connect(settings.need_database(), connect_timeout=settings.connect_timeout) as connection:
        schema.check(connection)
    database = Database(settings.need_database(), settings)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _log() -> Iterator[AuditLog]:
    with _database() as database:
        yield AuditLog(database, load().sealing_keys())


@app.command("list")
def list_rows(
    action: Action = None,
    actor: Actor = None,
    tenant: Tenant = None,
    target: Target = None,
    run: RunOption = None,
    outcome: OutcomeOption = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, and nothing else.")] = False,
) -> None:
    """Show the newest rows, the newest first."""
    which = _filter(action, actor, tenant, target, run, outcome, since, until)
    with _database() as database:
        rows = History(database).rows(which, limit=limit)
    if as_json:
        write_json_lines(iter(rows), sys.stdout)
        return
    if not rows:
        typer.echo("no such rows", err=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("id", "at", "actor", "action", "target", "outcome", "detail"):
        table.add_column(title, overflow="fold", justify="right" if title == "id" else "left")
    for row in rows:
        detail = " ".join(
            f"{name}={_short(value)}" for name, value in (document(row)["detail"] or {}).items()
        )
        style = "" if row.outcome == "done" else "yellow"
        cells = (f"{row.at:%Y-%m-%d %H:%M:%S}", row.actor, row.action, row.target or "", row.outcome, detail)
        table.add_row(str(row.id), *(Text(cell, style) for cell in cells))
    console().print(table)


@app.command()
def export(
    form: Annotated[Form, typer.Option("--format", help="JSON lines, or a table.")] = Form.jsonl,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A file; stdout without it.", show_default=False)
    ] = None,
    action: Action = None,
    actor: Actor = None,
    tenant: Tenant = None,
    target: Target = None,
    run: RunOption = None,
    outcome: OutcomeOption = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write all rows of a filter, the newest first."""
    which = _filter(action, actor, tenant, target, run, outcome, since, until)
    write = write_csv if form is Form.csv else write_json_lines
    with _database() as database:
        rows = History(database).all(which)
        if out is None:
            write(rows, sys.stdout)
            return
        with out.open("w", encoding="utf-8", newline="") as file:
            count = write(rows, file)
    typer.echo(f"{count:,} rows in {out}", err=True)


@app.command()
def verify(
    head: Annotated[
        str | None,
        typer.Option(metavar="NUMBER:CODE", help="A head that was kept elsewhere.", show_default=False),
    ] = None,
) -> None:
    """Check every seal and every sealed row, and name what was tampered with.

    Keep the head that it prints elsewhere: seals that are cut off at the end show only against it.
    """
    with _log() as log:
        found = log.verify(head)
    for finding in found.findings[:_SHOWN]:
        place = (
            f"row {finding.row} (seal {finding.seal})" if finding.row is not None else f"seal {finding.seal}"
        )
        typer.echo(f"{finding.kind.value:<10} {place}: {finding.what}")
    if found.found > _SHOWN:
        typer.echo(f"… and {found.found - _SHOWN:,} more")
    typer.echo(f"{found.rows:,} rows under {found.seals:,} seals, {found.unsealed:,} not sealed yet")
    if found.head is not None:
        typer.echo(f"head {found.head}")
    if not found.sound:
        raise typer.Exit(1)
    typer.echo("sound: nothing was changed, removed, inserted or moved")


@app.command()
def seal() -> None:
    """Seal what has been written. The tick does so by itself where TRELLIS_AUDIT_KEYS is set."""
    with _log() as log:
        typer.echo(f"{log.seal(batches=100_000):,} rows sealed")


@app.command()
def retire(month: Annotated[str, typer.Argument(metavar="YYYY-MM", help="A month that is over.")]) -> None:
    """Detach a month that is over and sealed, and verifies; its table stays, to be kept elsewhere and dropped."""
    try:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise ParameterError({"month": f"{month!r} is not a month as 2026-01"}) from error
    with _log() as log:
        name = log.retire(first)
    typer.echo(f"{month} lies in table {name} now, outside the log: dump it, then drop it")


@app.command()
def rebase() -> None:
    """Go on with a log that was restored into another cluster of Postgres, before anything else writes to it.

    Transactions are counted from a lower number there; new rows would stand among those that are sealed.
    """
    with _log() as log:
        typer.echo("new rows come after all others now" if log.rebase() else "nothing to do: they do already")


def _filter(
    action: str | None,
    actor: str | None,
    tenant: str | None,
    target: str | None,
    run: str | None,
    outcome: str | None,
    since: str | None,
    until: str | None,
) -> Filter:
    times = moment("since", since), moment("until", until)
    try:
        return Filter(action, actor, tenant, target, run, outcome, *times)
    except ParameterError as error:  # by the names of the options
        options = {"run_id": "run"}
        raise ParameterError({options.get(name, name): why for name, why in error.problems.items()}) from None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
