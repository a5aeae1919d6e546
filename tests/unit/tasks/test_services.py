"""The command lines of worker, beat and Flower."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from trellis.tasks import services
from trellis.tasks.app import app
from trellis.tasks.errors import CommunicationError, MissingExtra
from trellis.tasks.places import HOST
from trellis.tasks.settings import SYSTEM_QUEUE, Settings

SETTINGS = Settings(database_url="postgresql://h/d", broker_url="redis://h:1/0", imports=("shop.flows",))


def test_a_worker_consumes_its_queue_and_the_ticks() -> None:
    """However it is started: the configuration names both, the command neither."""
    command = services.worker_command(SETTINGS)
    assert command[1:4] == ["-m", "celery", "--app=trellis.tasks"]
    assert not [option for option in command if option.startswith("--queues")]
    assert [queue.name for queue in app.conf.task_queues] == [SYSTEM_QUEUE, SETTINGS.default_queue]


def test_options_of_a_worker_reach_celery() -> None:
    command = services.worker_command(SETTINGS, queues=["slow"], concurrency=3, pool="threads", name="w1")
    assert {"--queues=slow", "--concurrency=3", "--pool=threads", "--hostname=w1@%h"} <= set(command)
    assert "--hostname=w1@here" in services.worker_command(SETTINGS, name="w1@here")


def test_beat_keeps_its_schedule_where_it_is_told() -> None:
    assert "--schedule=/x/y" in services.beat_command(SETTINGS, Path("/x/y"))


def test_children_inherit_the_settings_of_the_command_line() -> None:
    env = services.environment(SETTINGS, "postgresql://a/b", "redis://c:1/0", SHUTDOWN_SECONDS="7")
    assert env["TRELLIS_DATABASE_URL"] == "postgresql://a/b"
    assert env["TRELLIS_BROKER_URL"] == "redis://c:1/0"
    assert env["TRELLIS_IMPORTS"] == "shop.flows"
    assert Path(env["TRELLIS_HOME"]).is_absolute()
    assert env["TRELLIS_SHUTDOWN_SECONDS"] == "7"


def test_flower_without_its_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, *_: Any) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(MissingExtra, match=r"pip install 'celery-trellis\[flower\]'"):
        services.flower_command(5555)


def test_a_taken_port_is_seen() -> None:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        assert not services.port_is_free(server.getsockname()[1])
    assert services.port_is_free(services.free_port())


def test_a_broker_that_is_not_there_is_reported_at_once() -> None:
    with pytest.raises(CommunicationError, match="cannot reach the broker"):
        services.check_broker(f"redis://{HOST}:{services.free_port()}/0")
