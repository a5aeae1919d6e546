"""Migrations: bring the database to the tables that this code needs, and refuse any other.

The law: one history for all tables, applied under an advisory lock, so two migrators at once are safe:
the second waits and finds nothing to do. A worker never runs on tables that it does not know.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine

from .database import Connection, connect
from .errors import SchemaMismatch

_LOCK = 7_205_759_403_792_794  # any constant; it names the lock "trellis migrates"
_FOLDER = Path(__file__).parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def migrate(database_url: str, revision: str = "head") -> str:
    """Apply what is missing up to `revision`; return the revision that the database is at.

    Raises CommunicationError where Postgres cannot be reached, SchemaMismatch where it is newer than this code.
    """
    with connect(database_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        try:
            found = revision_of(connection)
            if found is not None and not _knows(found):
                raise SchemaMismatch(found, head(), _UPGRADE)
            engine = create_engine(
                "postgresql+psycopg://", creator=lambda: psycopg.connect(database_url), poolclass=NullPool
            )
            config = _config()
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
    if found is not None and not _knows(found):
        raise SchemaMismatch(found, head(), _UPGRADE)
    raise SchemaMismatch(found, head(), "run `trellis migrate`")


def _knows(revision: str) -> bool:
    try:
        return ScriptDirectory.from_config(_config()).get_revision(revision) is not None
    except CommandError:
        return False
