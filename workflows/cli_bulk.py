"""`trellis runs … retry`: one verb for all runs that are meant.

The law: nobody does something to a hundred runs by a slip: they are counted first, and a person is asked; where nobody
can be asked, --yes has to stand there.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from ..tasks import spans
from ..tasks.errors import ConfigurationError
from ..tasks.terminal import hint
from . import show, words
from .bulk import COUNTED
from .cli_changes import Changes
from .client import Client
from .session import strange

_SHOWN = 10  # refusals

SinceOption = Annotated[
    str | None,
    typer.Option(
        help="Only those younger than this (90s, 15m, 2h, 7d), or after this moment (2026-11-20T08:00).",
        metavar="SPAN|MOMENT",
        show_default=False,
    ),
]


class Verb(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """What can be done to many runs."""

    retry = "retry"
    rerun = "rerun"
    cancel = "cancel"
    pause = "pause"
    resume = "resume"
    delete = "delete"


_PAST = {
    Verb.retry: "retried",
    Verb.rerun: "rerun",
    Verb.cancel: "cancelled",
    Verb.pause: "paused",
    Verb.resume: "resumed",
    Verb.delete: "deleted",
}


class Asked(NamedTuple):
    """Which runs a command line means."""

    workflow: str | None
    state: str | None
    tags: tuple[str, ...]
    since: str | None

    def __str__(self) -> str:
        """The conditions, for what follows "no runs"."""
        tags = "".join(f" with tag {tag!r}" for tag in self.tags)
        return (
            ("" if self.workflow is None else f" of workflow {self.workflow!r}")
            + ("" if self.state is None else f" that are {self.state}")
            + f"{tags}{'' if self.since is None else f' since {self.since}'}"
        )

    @property
    def moment(self) -> datetime | timedelta | None:
        """`since`, read. Raises ConfigurationError."""
        return None if self.since is None else spans.since(self.since)


def check(verb: Verb | None, changes: Changes) -> None:
    """Refuse what only a rerun takes where something else is asked for. Raises ConfigurationError."""
    if changes.given and verb is not Verb.rerun:
        other = "nothing is done to the runs" if verb is None else f"the verb is {verb.value}"
        raise ConfigurationError(
            f"{changes.given[0]} says what a rerun computes again, and {other}: leave it out"
        )


def do(
    client: Client,
    verb: Verb,
    asked: Asked,
    changes: Changes,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> NoReturn:
    """Count the runs, ask, do it, and leave: with 1 where one of them refused."""
    given: dict[str, Any] = {"state": asked.state, "tags": asked.tags, "since": asked.moment}
    if changes.given:
        newest = client.list(asked.workflow, limit=1, **given)
        given |= changes.read(client.definition(newest[0])) if newest else {}
    count = client.bulk(verb.value, asked.workflow, dry_run=True, **given).matched
    shown = words.at_most(count, COUNTED, "run")
    if dry_run or not count:
        if as_json:
            typer.echo(show.dumps({"matched": count, "done": 0, "refused": []}))
        else:
            typer.echo(f"{shown} would be {_PAST[verb]}")
            meant = "" if count else strange(client, asked.workflow)
            if meant:
                hint(f"no runs{asked}{meant}")
        raise typer.Exit
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError(f"{verb.value} of {shown}: add --yes, since nobody can be asked here")
        typer.confirm(f"{verb.value} {shown}?", abort=True, err=True)
    found = client.bulk(verb.value, asked.workflow, **given)
    if as_json:
        refused = [{"run": run, "reason": reason} for run, reason in found.refused]
        typer.echo(show.dumps({"matched": found.matched, "done": found.done, "refused": refused}))
    else:
        typer.echo(f"{words.plural(found.done, 'run')} {_PAST[verb]}")
        for _, reason in found.refused[:_SHOWN]:
            hint(reason, "yellow")
        if len(found.refused) > _SHOWN:
            hint(f"… and {len(found.refused) - _SHOWN:,} more refused", "yellow")
    raise typer.Exit(1 if found.refused else 0)
