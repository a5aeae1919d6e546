"""What a Celery worker needs to run Trellis: the engine's own tasks, and its boot.

The law: a worker that does not fit the database refuses to start and says which command helps. Celery
loads this module by name (`imports` in celeryconfig.py), so `celery -A trellis.tasks worker` is enough.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import psycopg
from billiard.process import current_process
from celery import Task, signals
from celery.exceptions import Ignore

from ..tasks import schema
from ..tasks.app import app
from ..tasks.errors import CommunicationError, DeploymentMismatch, ParameterError, TrellisError
from ..tasks.logs import configure, get_logger
from ..tasks.settings import current
from . import answering, auditing, beginnings, draining, events, foreign, misfit, recovery
from .client import Client
from .dispatch import BUNDLE, RANKED, unpack
from .engine import engine
from .guests import RUN
from .limits import Process
from .natives import NATIVES
from .schedules import Schedules, apply_declared

log = get_logger("trellis.worker")


class EngineStep(Task):
    """A kind of step that the engine runs itself."""

    abstract = True
    Request = "trellis.workflows.requests:Request"
    typing = False

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, **kwargs: Any) -> None:
        """Run a bundle of them."""
        if not draining.passed_on(self, kwargs):
            run, packed = kwargs[BUNDLE]
            engine().run_bundle(self.name, run, unpack(packed), kwargs.get(RANKED))


events.install(app)
for name in NATIVES:
    app.register_task(EngineStep(name))


class _Ticks:
    """When this process began its last tick (time.monotonic())."""

    last = float("-inf")


@app.task(name="trellis.tick", acks_late=False)
def tick() -> dict[str, int]:
    """One round of recovery; beat sends it.

    Ticks that piled up while no worker ran have nothing to add to each other: this process passes over those that
    come sooner than beat sends them.
    """
    now = time.monotonic()
    if now - _Ticks.last < current().tick_seconds / 2:
        return {}
    _Ticks.last = now
    return recovery.tick(engine())


@app.task(
    name="trellis.start",
    bind=True,
    # An accepted message must not be lost while Postgres is away. It keeps its id, and with it the run's key.
    autoretry_for=(CommunicationError, psycopg.OperationalError),
    max_retries=None,
    retry_backoff=1,
    retry_backoff_max=30,
)
def start(
    self: Task,
    workflow: str | dict[str, Any],
    params: Mapping[str, Any] | None = None,
    key: str | None = None,
    **options: Any,
) -> str:
    """Start a run, for applications that have only the broker; answers with the run's id.

    options: those of `Client.start` that JSON can say: tags, correlation_id, tenant, deadline, delay, at (a text in ISO
    8601 with its offset), debounce and singleton (their fields as an object; a singleton also as its key).

    Without a key, debounce or singleton the message's own id is the key: one that is delivered twice starts one run.
    """
    given = beginnings.of_message(options)
    if key is None and not ("debounce" in given or "singleton" in given):
        key = f"message:{self.request.id}"
    return _client().start(workflow, params, key=key, **given).id


# What a foreign task says must not be lost while Postgres is away.
_PATIENT: dict[str, Any] = {
    "autoretry_for": (CommunicationError, psycopg.OperationalError),
    "max_retries": None,
    "retry_backoff": 1,
    "retry_backoff_max": 30,
}


@app.task(name=foreign.RETURNED, typing=False, **_PATIENT)
def returned(value: Any = None, **about: str) -> None:
    """A foreign task, called as a step, has returned."""
    foreign.returned(engine(), value, **about)


@app.task(name=foreign.RAISED, typing=False, **_PATIENT)
def raised(*_: Any, **about: str) -> None:
    """A foreign task, called as a step, has failed."""
    foreign.raised(engine(), **about)


@app.task(name=RUN, bind=True, typing=False, **_PATIENT)
def run(
    self: Task,
    *before: Any,
    workflow: str | dict[str, Any],
    params: Mapping[str, Any],
    into: str | None = None,
    step: str | None = None,
    home: str = "celery",
) -> None:
    """A run inside a Celery canvas: it begins here, and the canvas goes on when it ends. No worker is held.

    The message's id is the run's key, so one that is delivered twice begins one run.
    """
    given = dict(params)
    if before:
        if into is None:
            problem = (
                "has no parameter left for the result of what came before: use wf.si(…), or give one less"
            )
            raise ParameterError({"run": problem}, workflow=workflow if isinstance(workflow, str) else None)
        given[into] = before[0]
    hooks = {"canvas": {"request": answering.request_of(self.request, home, app), "step": step}}
    _client().begin(workflow, given, key=f"task:{self.request.id}", columns={"hooks": hooks})
    raise Ignore


@lru_cache(maxsize=1)
def _client() -> Client:
    """The client of this process; its pool opens itself anew after a fork."""
    return Client()


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    configure(current())


@signals.worker_init.connect
def _check_in(**_: Any) -> None:
    """Refuse a database that does not fit; make the schedules that our modules declare.

    Celery swallows a handler's exception, but not SystemExit.
    """
    draining.reset()
    try:
        with engine().database.connection() as connection:
            schema.check(connection)
        apply_declared(Schedules(engine().database, engine().journal, engine().settings))
    except TrellisError as error:
        raise SystemExit(f"trellis: {error}") from error
    finally:
        # Children open their own; a parent that holds none has none to share by accident.
        engine().database.close()


@signals.celeryd_after_setup.connect
def _tell(sender: str, instance: Any, **_: Any) -> None:
    """Open runs that this code does not fit: said before the first of their steps is met. New settings: audited.

    The role of a worker is its name without the machine's.
    """
    found = engine()
    try:
        auditing.begins(found.database, found.settings, f"worker:{sender.partition('@')[0]}")
        queues = list(instance.app.amqp.queues.consume_from)
        misfit.check(found.database, found.actions, found.settings.default_queue, queues)
    except DeploymentMismatch as error:
        log.error("deployment.mismatch", problem=str(error))
    except (TrellisError, psycopg.Error) as error:
        log.warning("deployment.unchecked", problem=str(error))
    finally:
        found.database.close()


@signals.worker_process_init.connect
def _boot_child(**_: Any) -> None:
    # Celery sends this signal in a solo pool too, where the process is the worker itself.
    Process.killable = current_process().name != "MainProcess"


@signals.worker_shutting_down.connect
def _bound_shutdown(how: str, **_: Any) -> None:
    """A warm shutdown waits for running steps, but not for ever: then they are handed back.

    Celery's own soft shutdown is a sleep of the whole time, even when everything is done after a second. What does not
    listen when it is stopped goes down with its process: a cold shutdown, as a last resort.
    """
    if how != "Warm":
        return
    settings = current()
    draining.begin()
    last = settings.shutdown_seconds + settings.timeout_grace
    for seconds, what in ((settings.shutdown_seconds, draining.hand_back), (last, _cold_shutdown)):
        timer = threading.Timer(seconds, what)
        timer.daemon = True
        timer.start()


def _cold_shutdown() -> None:
    os.kill(os.getpid(), signal.SIGQUIT)
