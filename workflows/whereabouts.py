"""Where is a Celery task that does not answer? What its broker, its workers and its result backend say.

The law: nothing here decides or writes. An answer is what was found, a silence is not taken for an absence, and a
question to all workers is asked once for everybody who wants to know at that moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

from celery import Celery, states

from ..tasks.app import reader
from ..tasks.settings import Settings
from .dispatch import BROKER_GONE

PATIENCE = 1.0  # seconds of silence after which nobody else is expected to answer


class Census(NamedTuple):
    """What the workers of a broker said."""

    at: float  # time.monotonic() before they were asked
    tasks: frozenset[str]  # ids of the tasks that they have
    listeners: Mapping[str, frozenset[str]]  # queue: the workers that listen to it
    known: Mapping[str, frozenset[str]]  # worker: the names of the tasks that it can do

    def strangers(self, queue: str, name: str) -> list[str]:
        """The workers of a queue, where all of them say that they do not know the task; else nobody."""
        listeners = self.listeners.get(queue, frozenset())
        if all(worker in self.known and name not in self.known[worker] for worker in listeners):
            return sorted(listeners)
        return []


class Workers:
    """The workers of one broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._last: Census | None = None

    def census(self, not_older: float) -> Census:
        """What they said, `not_older` seconds ago at most. Raises what kombu raises without a broker."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last.at > not_older:
                self._last = self._ask()
            return self._last

    def _ask(self) -> Census:
        at = time.monotonic()
        questions = ("active", "reserved", "scheduled", "active_queues", "registered")
        with ThreadPoolExecutor(len(questions)) as threads:
            answers = list(threads.map(self._answers, questions))
        *having, queues, registered = answers
        listeners: dict[str, set[str]] = {}
        for worker, each in queues.items():
            for queue in each:
                listeners.setdefault(queue["name"], set()).add(worker)
        return Census(
            at,
            frozenset(_ids(having)),
            {queue: frozenset(workers) for queue, workers in listeners.items()},
            {
                worker: frozenset(name.partition(" [")[0] for name in each)
                for worker, each in registered.items()
            },
        )

    def _answers(self, question: str) -> dict[str, list[Any]]:
        inspect = self._app.control.inspect(timeout=PATIENCE)
        ask: Callable[[], dict[str, Any] | None] = getattr(inspect, question)
        return {worker: each for worker, each in (ask() or {}).items() if isinstance(each, list)}


def _ids(answers: list[dict[str, list[Any]]]) -> Iterator[str]:
    for answer in answers:
        for tasks in answer.values():
            for task in tasks:
                # A task with an ETA is wrapped once more.
                yield str(task.get("request", task)["id"])


@lru_cache(maxsize=8)
def workers(app: Celery) -> Workers:
    """The workers that this application's broker reaches."""
    return Workers(app)


def unheard(app: Celery, queues: Collection[str]) -> Mapping[str, str]:
    """The queues of other applications of which nobody says that he listens there, and what that means."""
    try:
        listeners = workers(app).census(0.0).listeners
    except BROKER_GONE as error:
        return dict.fromkeys(queues, f"the broker does not answer ({error})")
    return {
        queue: f"no worker answers that it listens to {queue!r}: start one of that application (one with --pool solo "
        "is silent while it works)"
        for queue in queues
        if not listeners.get(queue)
    }


class Told(NamedTuple):
    """What a result backend holds of a task that is over."""

    value: Any
    error: dict[str, Any] | None  # type, message and traceback


def told(settings: Settings, task: str) -> Told | None:
    """What the result backend of the foreign applications says; None where there is none, or nothing in it.

    Raises what the backend raises.
    """
    if settings.foreign_results_url is None:
        return None
    meta = _reader(settings.foreign_results_url).backend.get_task_meta(task)
    if meta["status"] == states.SUCCESS:
        return Told(meta["result"], None)
    if meta["status"] in (states.FAILURE, states.REVOKED):
        error = meta["result"]
        message = str(error) if isinstance(error, BaseException) else repr(error)
        trace = str(meta.get("traceback") or "")
        return Told(None, {"type": type(error).__name__, "message": message, "traceback": trace})
    return None


@lru_cache(maxsize=2)
def _reader(url: str) -> Celery:
    return reader(url)
