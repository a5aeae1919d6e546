"""Fixtures: real servers once a session, and for each test a database and a Redis database of its own."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

SUPPORT = Path(__file__).parent / "support"
sys.path.insert(0, str(SUPPORT))
for variable in [name for name in os.environ if name.startswith("TRELLIS_")]:
    del os.environ[variable]  # a developer's own stack is none of the tests' business
os.environ["TRELLIS_HOME"] = "/nonexistent/trellis"  # nor is the one that `trellis up` left in the folder

# Started in the background (`make test &`, a CI runner) a process ignores Ctrl-C, and so do all its children:
# the tests send it to theirs.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

import redis  # noqa: E402
from stack import Stack, stack_of  # noqa: E402

from trellis.tasks import embedded, schema  # noqa: E402

_numbers = itertools.count()


class _Loggers(dict[str, Any]):
    """All loggers by name, which can be walked through while a thread makes another one.

    pytest 9 walks through them at the beginning of each phase of a test without logging's lock. A thread that imported
    something just then (a client of the broker, say) ended the test after it: seen once in 3,300 tests.
    """

    def values(self) -> Any:
        return list(super().values())


logging.root.manager.loggerDict = _Loggers(logging.root.manager.loggerDict)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Servers]:
    """Postgres with pgvector, and Redis, on free ports."""
    with embedded.servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture(scope="session")
def template(servers: embedded.Servers) -> str:
    """The name of a migrated database; a clone of it takes 30 ms, migrating one 300."""
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE migrated")
    schema.migrate(servers.postgres.url("migrated"))
    return "migrated"


@pytest.fixture
def stack(servers: embedded.Servers, template: str, tmp_path: Path) -> Iterator[Stack]:
    """The stack of this test."""
    number = next(_numbers)
    db = number % 100
    with redis.Redis.from_url(servers.redis.url(db)) as client:
        client.flushdb()
    yield from stack_of(servers, template, f"test_{number}", db, tmp_path)


def pytest_sessionfinish() -> None:
    """Keep what was covered: xdist gives its processes ten seconds to end, and writing it may take longer."""
    coverage = sys.modules.get("coverage")
    running = coverage.Coverage.current() if coverage is not None else None
    if running is not None:
        running.stop()
        running.save()
