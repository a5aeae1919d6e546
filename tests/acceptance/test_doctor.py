"""`trellis doctor`: what it finds, what it advises, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from forks import ran

from trellis.tasks import embedded, schema
from trellis.tasks.embedded import Servers


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers whose settings a test may spoil."""
    with embedded.servers(tmp_path_factory.mktemp("doctor")) as running:
        yield running


def doctor(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
    return ran(["trellis", "doctor", *options], folder, {**clean, **env})


def checks(folder: Path, **env: str) -> dict[str, dict[str, Any]]:
    """The checks by name, as a program reads them."""
    ended = doctor(folder, "--json", **env)
    report = json.loads(ended.stdout)
    assert ended.returncode == (0 if report["ok"] else 1)
    return {check["name"]: check for check in report["checks"]}


def addresses(servers: Servers, database: str) -> dict[str, str]:
    return {
        "TRELLIS_DATABASE_URL": servers.postgres.url(database),
        "TRELLIS_BROKER_URL": servers.broker_url,
    }


@pytest.fixture
def database(own: Servers, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database of this test."""
    name = f"doctor_{abs(hash(request.node.name)) % 10**8}"
    with psycopg.connect(own.postgres.url("postgres"), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"'.encode())
        yield name
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def test_where_nothing_runs_it_says_how_to_start(tmp_path: Path) -> None:
    ended = doctor(tmp_path)
    assert ended.returncode == 1
    assert ended.stdout.startswith("problem settings")
    assert "trellis up" in ended.stdout


def test_servers_that_are_not_there(tmp_path: Path) -> None:
    nowhere = {
        "TRELLIS_DATABASE_URL": "postgresql://trellis:hidden@127.0.0.1:1/trellis",
        "TRELLIS_BROKER_URL": "redis://:hidden@127.0.0.1:1/0",
    }
    ended = doctor(tmp_path, **nowhere)
    assert ended.returncode == 1
    assert "hidden" not in ended.stdout
    found = checks(tmp_path, **nowhere)
    assert not found["postgres"]["ok"]
    assert "TRELLIS_DATABASE_URL" in found["postgres"]["todo"]
    assert not found["redis"]["ok"]
    assert "workers" not in found, "a consequence is reported as a problem of its own"


def test_an_empty_database_wants_to_be_migrated(tmp_path: Path, own: Servers, database: str) -> None:
    found = checks(tmp_path, **addresses(own, database))
    assert found["postgres"]["ok"]
    assert "Postgres 18" in found["postgres"]["found"]
    for name in ("vector", "migrations"):
        assert not found[name]["ok"]
        assert "trellis migrate" in found[name]["todo"]


def test_a_migrated_database_without_beat_and_workers(tmp_path: Path, own: Servers, database: str) -> None:
    schema.migrate(own.postgres.url(database))
    found = checks(tmp_path, **addresses(own, database))
    good = {"settings", "postgres", "vector", "migrations", "redis", "eviction", "persistence"}
    assert {name for name, check in found.items() if check["ok"]} == good
    assert "trellis beat" in found["beat"]["todo"]
    assert "trellis worker" in found["workers"]["todo"]


@pytest.mark.parametrize(
    ("setting", "bad", "good", "check"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction", "eviction"),
        ("appendonly", "no", "yes", "persistence"),
    ],
)
def test_a_redis_that_loses_messages(
    tmp_path: Path, own: Servers, database: str, setting: str, bad: str, good: str, check: str
) -> None:
    client = redis.Redis.from_url(own.broker_url)
    client.config_set(setting, bad)
    try:
        found = checks(tmp_path, **addresses(own, database))
    finally:
        client.config_set(setting, good)
    assert not found[check]["ok"]
    assert f"CONFIG SET {setting} {good}" in found[check]["todo"]


def test_ticks_that_stopped(tmp_path: Path, own: Servers, database: str) -> None:
    schema.migrate(own.postgres.url(database))
    with psycopg.connect(own.postgres.url(database), autocommit=True) as connection:
        connection.execute("INSERT INTO heartbeat (name, at) VALUES ('tick', now() - interval '1 hour')")
        assert not checks(tmp_path, **addresses(own, database))["beat"]["ok"]
        connection.execute("UPDATE heartbeat SET at = clock_timestamp()")
        assert checks(tmp_path, **addresses(own, database))["beat"]["ok"]
