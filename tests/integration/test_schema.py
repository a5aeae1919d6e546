"""Migrations on real databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from trellis.tasks import schema
from trellis.tasks.database import Base
from trellis.tasks.embedded import Servers
from trellis.tasks.errors import CommunicationError, SchemaMismatch
from trellis.workflows import tables


@pytest.fixture
def empty(servers: Servers) -> Iterator[str]:
    """An empty database."""
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE empty")
        yield servers.postgres.url("empty")
        admin.execute("DROP DATABASE empty WITH (FORCE)")


def test_migrators_at_once_are_safe(empty: str) -> None:
    """Four start together: one migrates, the others wait and find nothing to do."""
    with ThreadPoolExecutor(4) as pool:
        revisions = set(pool.map(lambda _: schema.migrate(empty), range(4)))
    assert revisions == {schema.head()}


def test_the_tables_are_what_the_migrations_make(empty: str) -> None:
    """Alembic finds no difference between the classes and the migrated database."""
    assert tables.StepRow.__tablename__ == "step"
    schema.migrate(empty)
    engine = create_engine(empty.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        # The memory and the audit log are partitions, policies, functions and triggers: nothing of them is a class.
        hidden = ("memory", "audit_", "working")
        named = {"include_name": lambda name, kind, _: kind != "table" or not name.startswith(hidden)}
        assert compare_metadata(MigrationContext.configure(connection, opts=named), Base.metadata) == []
    engine.dispose()


def test_an_unmigrated_and_a_newer_database_are_refused_with_the_remedy(empty: str) -> None:
    """Older: migrate. Newer: upgrade, and migrating it is refused as well."""
    with psycopg.connect(empty, autocommit=True) as connection:
        with pytest.raises(SchemaMismatch, match="trellis migrate") as caught:
            schema.check(connection)
        assert (caught.value.found, caught.value.expected) == (None, schema.head())
        schema.migrate(empty)
        schema.check(connection)
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(SchemaMismatch, match="pip install -U"):
            schema.check(connection)
    with pytest.raises(SchemaMismatch, match="pip install -U"):
        schema.migrate(empty)


def test_a_database_out_of_reach_is_said_at_once() -> None:
    """The driver's own words, without a traceback of ours."""
    with pytest.raises(CommunicationError, match="cannot reach Postgres: .*refused"):
        schema.migrate("postgresql://u@127.0.0.1:1/none")
