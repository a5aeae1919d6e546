"""Any Celery task of any application on the broker as a step, by its name and without a change to it.

The law: at least once, and never lost without a word. The step is parked, then the task is sent with an id that
the journal knows by then, and with callbacks to `trellis.returned` and `trellis.raised`, which keep its answer as a
signal of the run and wake the step. A crash or a lost message leaves a parked step that wakes by time: it looks
for its task, and sends it again, under the same id, where nobody has it any more. No worker is held meanwhile. Nothing
is sent to a queue that is paused: the step waits for the tick that finds it paused no longer.

The id is random and not derived from run and step: a step that is repeated by hand must not find the old answer.
Only a step that holds its lease parks, and only what is parked is sent, so no attempt has two ids.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import uuid4

from celery import signature

from ..tasks.database import Connection
from ..tasks.errors import NotFound, OutputError, StepTimeout, TaskFailed, ValueTooLarge
from ..tasks.logs import get_logger
from ..tasks.retry import Retry
from ..tasks.settings import SYSTEM_QUEUE, Settings
from . import whereabouts
from .contract import Contract
from .dispatch import BROKER_GONE, Dispatcher
from .execution import describe, failed, settle, timeout_of
from .here import Here
from .journal import Journal
from .kinds import CONTRACTS
from .pauses import Pauses
from .records import Claimed, Json, Outcome, Parked
from .waiting import noted, parked, succeeded

RETURNED = "trellis.returned"
RAISED = "trellis.raised"


def _anything() -> Any: ...


log = get_logger("trellis.foreign")


class Place(Protocol):
    """What it takes to tell a run something."""

    @property
    def settings(self) -> Settings:
        """The settings of the process."""

    @property
    def journal(self) -> Journal:
        """The journal."""

    @property
    def dispatcher(self) -> Dispatcher:
        """Who publishes what is woken."""


def call(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome | None:
    """Send the task and wait; or take its answer; or look for it."""
    asked = CONTRACTS[step.action].validate(inputs)
    queue = asked.get("queue") or here.settings.default_queue
    note = noted(step)
    if "task" not in note:
        _begin(here, step, asked, queue)
        return None
    began = time.monotonic()
    timeout = timeout_of(step, here.settings)
    after, send = note, False
    if note.get("woken") == "time":
        after, send = _sought(here, step, note)
        if send and _sendable(here, note["queue"]) is None:
            after, send = {**note, "missed": 1, "pause": here.settings.redelivery_seconds}, False

    def decision(connection: Connection) -> Outcome | Parked:
        found = here.journal.take_signal(connection, here.run, f"task:{note['task']}", step.idx)
        ran = here.journal.clock(connection) - note["since"]
        if found is not None:
            return _ended(step, found.payload)._replace(ran=max(0.0, ran))
        if ran >= timeout:
            return failed(step, StepTimeout(timeout), began)._replace(ran=ran)
        return _parked(step, after, min(after["pause"], timeout - ran))

    outcome = here.journal.decide(here.run, decision)
    if outcome is None and send:
        log.info("task.resent", task=after["task"], name=after["name"], queue=after["queue"])
        _send(here, step, asked, after)
    elif outcome is not None and outcome.error is not None and outcome.error["type"] == StepTimeout.__name__:
        here.dispatcher.revoke([note["task"]])
    return outcome


def _sendable(here: Here, queue: str) -> float | None:
    return Pauses(here.journal.database).sendable(queue)


def _begin(here: Here, step: Claimed, asked: Mapping[str, Any], queue: str) -> None:
    since = _sendable(here, queue)
    if since is None:
        here.journal.park(here.run, parked(step, f"queue:{queue}"))
        return
    note = {
        "task": str(uuid4()),
        "name": asked["task"],
        "queue": queue,
        "since": since,
        "sends": 1,
        "missed": 0,
        "pause": here.settings.redelivery_seconds,
    }
    pause = min(note["pause"], timeout_of(step, here.settings))
    here.journal.park(here.run, _parked(step, note, pause))
    _send(here, step, asked, note)


def _parked(step: Claimed, note: Mapping[str, Json], seconds: float) -> Parked:
    kept = {name: value for name, value in note.items() if name not in ("woken", "until")}
    return parked(step, f"task:{note['task']}", kept, seconds=seconds)


def _send(here: Here, step: Claimed, asked: Mapping[str, Any], note: Mapping[str, Json]) -> None:
    about = {"run": here.run, "step": step.name, "task": note["task"], "name": note["name"]}
    # JSON whatever the other application's serializer is: ours reads nothing else.
    options = {"queue": SYSTEM_QUEUE, "serializer": "json"}
    back, error = (signature(name, kwargs=about, options=options) for name in (RETURNED, RAISED))
    here.dispatcher.call(
        note["task"],
        note["name"],
        asked.get("args") or [],
        asked.get("kwargs") or {},
        queue=note["queue"],
        priority=asked.get("priority"),
        run=here.run,
        callbacks=[back],
        errbacks=[error],
    )


# --- what became of it


def returned(place: Place, value: Any, *, run: str, step: str, task: str, name: str) -> None:
    """Keep what the task returned, and wake its step."""
    _tell(place, run, task, _kept(value, place.settings, step, name))


def raised(place: Place, *, run: str, step: str, task: str, name: str) -> None:
    """Keep that the task failed, with its error as far as it can be known, and wake its step.

    A worker that does not know `trellis.raised` can send it nothing but the task's id.
    """
    try:
        found = whereabouts.told(place.settings, task)
        reason = (
            "set TRELLIS_FOREIGN_RESULTS_URL to the result backend of its application to see its error here"
        )
        if place.settings.foreign_results_url is not None:
            reason = "its result backend holds no error of it"
    except (
        Exception
    ) as error:  # whatever a backend raises: the failure counts, its reason is told as far as it goes
        found, reason = None, f"its result backend does not answer ({type(error).__name__}: {error})"
    if found is not None and found.error is not None:
        payload: dict[str, Json] = {"error": _told(found.error, step)}
    else:
        payload = {"error": describe(TaskFailed(name, task, reason), step)}
    _tell(place, run, task, payload)


def raised_by(place: Place, error: Exception, *, run: str, step: str, task: str, name: str) -> None:
    """Keep the exception of a task that ran in this process (see testing)."""
    _tell(place, run, task, {"error": describe(error, step)})


def _kept(value: Any, settings: Settings, step: str, name: str) -> dict[str, Json]:
    try:
        data = Contract.of(_anything, name).dump(value)
        if len(data) > settings.value_max_bytes:
            raise ValueTooLarge(
                f"the result of task {name!r} in step {step!r}", len(data), settings.value_max_bytes
            )
    except (OutputError, ValueTooLarge) as error:
        return {"error": describe(error, step), "hopeless": True}  # it would return the same again
    return {"result": json.loads(data)}


def _told(error: Mapping[str, Any], step: str) -> dict[str, Json]:
    known = describe(Exception(error["message"]), step)  # cleaned: no secrets, nothing Postgres refuses
    trace = describe(Exception(error["traceback"][-4000:]), step)["message"]
    return {**known, "type": error["type"], "traceback": trace}


def _tell(place: Place, run: str, task: str, payload: dict[str, Json]) -> None:
    name = f"task:{task}"
    told = place.journal.signal(run, name, task, payload, name)
    place.dispatcher.publish(run, told.workflow, told.woken)


def _ended(step: Claimed, payload: dict[str, Json]) -> Outcome:
    error = payload.get("error")
    if error is None:
        return succeeded(step, payload["result"])
    retry = Retry.model_validate((step.options or {}).get("retry") or {"attempts": 1})
    failures = retry.attempts if payload.get("hopeless") else step.failures + 1
    outcome = settle(step.idx, step.lease, failures, retry, step.options, {**error, "step": step.name})
    return outcome._replace(ended=time.monotonic())


# --- what became of one that does not answer


def _sought(here: Here, step: Claimed, note: dict[str, Json]) -> tuple[dict[str, Json], bool]:
    """What to note and whether to send the task again: it is lost where nobody has it at two looks in a row.

    Two, because between one answer and the next it may be on its way from a queue to a worker, or its answer to us.
    """
    settings, queue = here.settings, note["queue"]
    later = {**note, "missed": 0, "pause": min(2 * note["pause"], settings.redelivery_max_seconds)}
    again = {**note, "missed": 0, "pause": settings.redelivery_seconds, "sends": note["sends"] + 1}
    try:
        if (
            _is_over(here, step, note)
            or here.dispatcher.waiting(queue)
            or here.dispatcher.waiting(SYSTEM_QUEUE)
        ):
            return later, False  # it may be among what waits, or its answer
        census = whereabouts.workers(here.dispatcher.app).census(settings.redelivery_seconds / 2)
    except BROKER_GONE:
        return later, False
    if note["task"] in census.tasks:
        return later, False
    if not census.listeners.get(queue):
        # Nobody answers for the queue: it is down, or busy with our very task (a solo pool is silent while it works).
        silent = here.journal.clock() - note["since"] >= note["sends"] * settings.redelivery_max_seconds
        return (again, True) if silent else (later, False)
    if not note["missed"]:
        return {**again, "missed": 1, "sends": note["sends"]}, False
    strangers = census.strangers(queue, note["name"])
    if strangers:
        who = f"{', '.join(strangers)} listen to queue {queue!r} and do not"
        unknown = NotFound(
            "task", note["name"], f"{who}: correct its name or queue, or start a worker with it"
        )
        _tell(here, here.run, note["task"], {"error": describe(unknown, step.name)})
        return later, False
    return again, True


def _is_over(here: Here, step: Claimed, note: dict[str, Json]) -> bool:
    """Whether its result backend has the end of a task, of which only the answer was lost; then that is kept."""
    try:
        found = whereabouts.told(here.settings, note["task"])
    except Exception as error:  # whatever a backend raises: its word is welcome, not needed
        log.warning("task.results", task=note["task"], error=f"{type(error).__name__}: {error}")
        return False
    if found is None:
        return False
    if found.error is None:
        payload = _kept(found.value, here.settings, step.name, note["name"])
    else:
        payload = {"error": _told(found.error, step.name)}
    _tell(here, here.run, note["task"], payload)
    return True
