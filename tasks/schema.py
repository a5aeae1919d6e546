"""Migrations: bring the database to the tables that this code needs, and refuse any other.

The law: one history for all tables, applied under an advisory lock, so two migrators at once are safe:
the second waits and finds nothing to do. A worker never runs on tables that it does not know. A revision
is named by its file's number, so that knowing the newest takes a look at a folder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import psycopg
from sqlalchemy import NullPool, create_engine

from .database import Connection, connect
from .errors import SchemaMismatch

_LOCK = 7_205_759_403_792_794  # any constant; it names the lock "trellis migrates"
_FOLDER = Path(__file__).parent / "migrations"


@cache
def _revisions() -> tuple[str, ...]:
    """All revisions that this code knows, from the first to the newest."""
    return tuple(sorted(file.name[:4] for file in (_FOLDER / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")))


def head() -> str:
    """The newest revision that this code knows."""
    return _revisions()[-1]


def migrate(database_url: str, revision: str = "head") -> str:
    """Apply what is missing up to `revision`; return the revision that the database is at.

    Raises CommunicationError where Postgres cannot be reached, SchemaMismatch where it is newer than this code.
    """
    # Alembic takes longer to import than half of Trellis, and no other command and no worker needs it.
    from alembic import command
    from alembic.config import Config

    with connect(database_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        try:
            found = revision_of(connection)
            if found is not None and found not in _revisions():
                raise SchemaMismatch(found, head(), _UPGRADE)
            engine = create_engine(
                "postgresql+psycopg://", creator=lambda: psycopg.connect(database_url), poolclass=NullPool
            )
            config = Config()
            config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
            with engine.begin() as bind:
                config.attributes["connection"] = bind
                command.upgrade(config, revision)
            return revision_of(connection) or "none"
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


_UPGRADE = "a newer version of Trellis migrated it; upgrade this one: pip install -U celery-trellis"


def revision_of(connection: Connection) -> str | None:
    """The revision that the database is at; None where it was never migrated."""
    present = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
    if present is None or present[0] is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def check(connection: Connection) -> None:
    """Raise SchemaMismatch, with the command to run, unless the database is at this code's revision."""
    found = revision_of(connection)
    if found == head():
        return
    if found is not None and found not in _revisions():
        raise SchemaMismatch(found, head(), _UPGRADE)
    raise SchemaMismatch(found, head(), "run `trellis migrate`")
