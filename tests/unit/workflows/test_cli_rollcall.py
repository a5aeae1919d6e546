"""Asking the workers what they know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from trellis.workflows import rollcall


class Workers:
    """A Celery application whose workers answer from here."""

    def __init__(self, tasks: dict[str, list[str]], queues: tuple[str, ...] = ("celery",)) -> None:
        self.control = self
        self.tasks = tasks
        self.queues = queues
        self.heard: list[str] = []

    def broadcast(
        self, question: str, *, reply: bool, timeout: float, callback: Callable[[dict[str, Any]], None]
    ) -> None:
        for name, tasks in self.tasks.items():
            self.heard.append(name)
            answer = tasks if question == "registered" else [{"name": queue} for queue in self.queues]
            callback({name: answer})


class NoBroker:
    """A Celery application whose broker is away."""

    control: Any = None

    def __init__(self) -> None:
        self.control = self

    def broadcast(self, question: str, **_: Any) -> None:
        raise OperationalError("connection refused")


def missing(workers: Workers | NoBroker, *needs: tuple[str, str]) -> str | None:
    return rollcall.missing(cast(Celery, workers), needs)


def test_where_all_is_known_there_is_nothing_to_say() -> None:
    """The engine's own steps are known to every worker, and a rate limit behind a name is no part of it."""
    workers = Workers({"a@x": ["app.load [rate_limit=10/s]"], "b@x": ["app.check"]})
    needs = [("app.load", "celery"), ("app.check", "celery"), ("trellis.map", "celery")]
    assert missing(workers, *needs) is None


def test_it_stops_listening_when_it_knows_enough() -> None:
    workers = Workers({"a@x": ["app.load"], "b@x": ["app.load"]})
    assert missing(workers, ("app.load", "celery")) is None
    assert workers.heard == ["a@x", "a@x"]


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (Workers({}), "no worker answers: start one with `trellis worker`"),
        (
            Workers({"a@x": ["app.other"]}),
            "no worker knows action 'app.load': start one with `trellis worker --import app`",
        ),
        (
            Workers({"a@x": ["app.load"]}, queues=("mail",)),
            "no worker listens to 'celery': start one with `trellis worker --queues celery`",
        ),
        (NoBroker(), "the broker does not answer (connection refused)"),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_helps(workers: Workers, message: str) -> None:
    assert (missing(workers, ("app.load", "celery")) or "").startswith(message)


def test_several_unknown_actions_are_listed() -> None:
    found = missing(Workers({"a@x": []}), ("app.a", "celery"), ("b", "celery"))
    assert found is not None
    assert "no worker knows actions 'app.a', 'b'" in found


def test_a_module_is_known_by_its_tasks() -> None:
    workers = cast(Celery, Workers({"a@x": ["flows.nightly.load"]}))
    assert rollcall.module_known(workers, ["nightly", "flows.nightly"]) == "flows.nightly"
    assert rollcall.module_known(workers, ["night"]) is None
    assert rollcall.module_known(cast(Celery, NoBroker()), ["nightly"]) is None
