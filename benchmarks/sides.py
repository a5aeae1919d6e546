"""The two sides of the comparison: the engine, and Celery's own canvas of the same definition.

The law: the clock runs from the call that sends a workflow (`Client.start`, `apply_async`) until its end is
known in this process (`Client.wait`, `AsyncResult.get`); what was built before (the definition, the canvas) is not
in it, and what was asked for is checked after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import psycopg
import redis
from celery.result import AsyncResult
from shapes import independent, warm_up
from stack import Group

from trellis.tasks.app import app
from trellis.workflows import Client, Run, RunState, Workflow

PATIENCE = 600.0  # seconds for one run
TRANSPORT = "redis"  # of the canvas: kombu's own, which keeps no clients and notes each message


class Side(Protocol):
    """Something that runs workflows and takes the time."""

    group: Group

    def warm(self, slots: int) -> None:
        """Bring its pools up, and let it learn what it learns."""

    def run(self, workflow: Workflow) -> float:
        """Seconds of one run."""

    def send(self, workflow: Workflow) -> Callable[[], object]:
        """Send a workflow; what comes back waits for its end."""


class Durable:
    """The engine."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.client = self._client()

    def _client(self) -> Client:
        # The address is said, since this process's own Celery application belongs to the other side.
        return Client(self.group.settings, broker_url=self.group.settings.broker_url)

    def warm(self, slots: int) -> None:
        """Run until the means of the actions are known to the workers, the journal and a new client."""
        self.run(warm_up(slots, 0.3))
        for pause in (2.1, 0.0):  # children write what they measured every 2 s, with the next bundle
            self.run(independent(300))
            time.sleep(pause)
        self.close()
        self.client = self._client()
        self.run(independent(300))

    def forget(self) -> None:
        """Let the journal forget how long actions took. (The workers go on knowing what they measured.)"""
        with psycopg.connect(self.group.settings.need_database(), autocommit=True) as connection:
            connection.execute("TRUNCATE action_stat")

    def run(self, workflow: Workflow) -> float:
        """Seconds of one run."""
        began = time.perf_counter()
        ended = self.client.wait(self.client.start(workflow), PATIENCE)
        seconds = time.perf_counter() - began
        self._check(ended)
        return seconds

    def send(self, workflow: Workflow) -> Callable[[], Run]:
        """Start a run; what comes back waits for its end."""
        run = self.client.start(workflow)
        return lambda: self.finish(run)

    def finish(self, run: Run, patience: float = PATIENCE) -> Run:
        """Wait for the end of a run."""
        ended = self.client.wait(run, patience)
        self._check(ended)
        return ended

    def _check(self, run: Run) -> None:
        """Whether every step of an ended run is done."""
        done = self.client.progress(run).done
        if run.state is not RunState.SUCCEEDED or done != run.steps:
            raise RuntimeError(f"run {run.id} is {run.state}: {done} of {run.steps} steps, {run.error}")

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class Native:
    """Celery's canvas, with results in Redis, waited for by `AsyncResult.get`.

    `propagate` is get's own option. With it (the default, what everybody writes) Celery asks Redis for the results
    of all parts before the last one on every message it hears while it waits, so waiting for a wide or long canvas
    costs more than running it. Without it a failure would come back as a value.
    """

    def __init__(self, group: Group, *, propagate: bool = True) -> None:
        self.group = group
        self._propagate = propagate
        settings = group.settings
        assert settings.result_backend_url is not None
        app.conf.update(
            broker_url=settings.broker_url,
            broker_transport=TRANSPORT,
            result_backend=settings.result_backend_url,
            task_default_queue=settings.default_queue,
            task_ignore_result=False,
        )
        self._results = redis.Redis.from_url(settings.result_backend_url)

    def warm(self, slots: int) -> None:
        """Bring the pool and the connections up."""
        self.run(warm_up(slots, 0.3))
        for _ in range(2):
            self.run(independent(300))

    def run(self, workflow: Workflow) -> float:
        """Seconds of one run."""
        canvas = workflow.canvas()
        began = time.perf_counter()
        result = canvas.apply_async()
        value = self._get(result)
        seconds = time.perf_counter() - began
        _check(workflow, value)
        self._results.flushdb()
        return seconds

    def send(self, workflow: Workflow) -> Callable[[], Any]:
        """Apply a canvas; what comes back waits for its end."""
        result = workflow.canvas().apply_async()
        return lambda: self._get(result)

    def _get(self, result: AsyncResult) -> Any:
        return result.get(timeout=PATIENCE, propagate=self._propagate)


def _check(workflow: Workflow, value: Any) -> None:
    """Whether the canvas returned what its last part returns: a carry, or one for each member of a group."""
    ends = value if isinstance(value, list) else [value]
    if not all(isinstance(end, dict) for end in ends):
        raise RuntimeError(f"the canvas of {workflow.name} returned {value!r:.200}")
