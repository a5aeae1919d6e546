"""Secrets under a new key: everything that the journal keeps encrypted, a few rows at a time.

The law: a transaction takes one run's row or a few of its steps, so nobody waits for it for long. What is under the
newest key already is passed by: stopped in the midst and begun again, it goes on. Afterwards the old keys open nothing
that is kept, unless somebody still encrypts with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.rows import tuple_row

from ..memory.actions import AuditAction
from ..memory.audit import Entry, record
from ..tasks.database import Connection, Database, rows_of
from ..tasks.errors import ConfigurationError
from ..tasks.queries import load
from ..tasks.settings import Settings
from ..tasks.vault import Vault

SQL = load("trellis.workflows.sql", "secrets.sql")

_RUNS = 1000  # looked at in one statement
_STEPS = 200  # changed in one transaction


class Rotated(NamedTuple):
    """What was encrypted anew."""

    runs: int
    steps: int


def rotate(
    database: Database, settings: Settings, told: Callable[[Rotated], None] = lambda _: None
) -> Rotated:
    """Encrypt with the first key what others have encrypted, and note it in the audit log.

    told: called now and then with what is done so far.

    Raises ConfigurationError without a key, SecretError for what none of the keys opens.
    """
    vault = Vault(settings.encrypting_keys())
    if vault.newest is None:
        raise ConfigurationError(
            "TRELLIS_SECRET_KEYS is not set: name the new key first, and the old ones behind it"
        )
    done, after = Rotated(0, 0), UUID(int=0)
    while found := _ask(database, "holders", after=after, room=_RUNS):
        for run, holds in found:
            if holds:
                done = Rotated(
                    done.runs + _run(database, vault, run), done.steps + _steps(database, vault, run)
                )
        after = found[-1][0]
        told(done)
    if any(done):
        with database.transaction() as connection:
            record(
                connection, Entry(AuditAction.SECRETS_ROTATED, detail={"to": vault.newest, **done._asdict()})
            )
    return done


def _run(database: Database, vault: Vault, run: UUID) -> bool:
    def once() -> bool:
        with database.transaction() as connection:
            for row in ask(connection, "read_run", run=run):
                new = [None if text is None else vault.renewed(text) for text in row]
                if new != list(row):
                    ask(
                        connection,
                        "keep_run",
                        run=run,
                        **dict(zip(("params", "hooks", "edits"), new, strict=True)),
                    )
                    return True
        return False

    return database.again(once)


def _steps(database: Database, vault: Vault, run: UUID) -> int:
    changed, after = 0, -1

    def once() -> tuple[int, int | None]:
        count, last = 0, None
        with database.transaction() as connection:
            for last, *row in ask(connection, "read_steps", run=run, after=after, room=_STEPS):
                new = [None if text is None else vault.renewed(text) for text in row]
                if new != row:
                    ask(connection, "keep_step", run=run, idx=last, inputs=new[0], options=new[1])
                    count += 1
        return count, last

    while True:
        count, last = database.again(once)
        changed += count
        if last is None:
            return changed
        after = last


def _ask(database: Database, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    def once() -> list[tuple[Any, ...]]:
        with database.connection() as connection:
            return ask(connection, block, **arguments)

    return database.again(once)


def ask(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    """The rows of a statement of secrets.sql."""
    cursor = connection.cursor(row_factory=tuple_row).execute(SQL[block], arguments)
    return rows_of(cursor)
