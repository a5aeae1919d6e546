"""What Celery hears of the end of a run: the signatures that were left for it, and the canvas that it stands in.

The law: at least once. Both are entries of a run's hooks, written when it was accepted, so that a crash between the
end of the run and the message is made good by the tick. A signature of one task is sent under an id that is derived
from the run, and the rest of a chain under the ids that it was given, so a second message can be told from a first.

hooks: {"signatures": {"success": [signature], "failure": [signature]},
        "canvas": {"request": {…}, "step": its result is passed on, or null},
        "tasks": true where the run has steps that are tasks of other applications}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

from celery import Celery
from celery import signature as as_signature
from celery.app.task import Context as Request
from kombu.utils.json import dumps

from ..tasks.errors import ExecutionError
from ..tasks.logs import get_logger
from .dispatch import BROKER_GONE, Dispatcher
from .journal import Journal
from .records import Ended, Json
from .signatures import sent_home
from .states import RunState

_LIMIT_KEY = "run"  # what stands in for results that are too large to travel

log = get_logger("trellis.answering")


def send_signatures(
    app: Celery, ended: Ended, value: Json, kept: Mapping[str, list[dict[str, Json]]]
) -> None:
    """Send what was left for this end. Raises what kombu raises where the broker cannot be reached."""
    kind = "success" if ended.state is RunState.SUCCEEDED else "failure"
    for number, each in enumerate(kept.get(kind) or ()):
        found = as_signature(each, app=app)
        # A canvas freezes ids of its own; that of a single task, or of a chain's last, is the same every time.
        options = {"task_id": str(uuid5(UUID(ended.run), f"{kind}:{number}"))}
        if found.subtask_type == "group":
            options = {}
        try:
            found.apply_async((value,), **options)
        except BROKER_GONE:
            raise
        except Exception:  # one that its application refuses would come back with every tick
            log.exception("signature.refused", run=ended.run, task=found.task)


def go_on(app: Celery, ended: Ended, value: Json, kept: Mapping[str, Any]) -> None:
    """What Celery does when a task ends, for the task that began this run: its callbacks, chain, chord and result.

    Raises what kombu or the result backend raises where they cannot be reached.
    """
    request = Request(kept["request"])
    if ended.state is not RunState.SUCCEEDED:
        app.backend.mark_as_failure(request.id, ExecutionError(_sentence(ended)), request=request)
        return
    family = {"parent_id": request.id, "root_id": request.root_id or request.id}
    for each in request.callbacks or ():
        as_signature(each, app=app).apply_async((value,), **family)
    if request.chain:
        *rest, following = request.chain
        as_signature(following, app=app).apply_async((value,), chain=rest, **family)
    app.backend.mark_as_done(request.id, value, request=request)


def request_of(request: Any, home: str, ours: Celery) -> dict[str, Json]:
    """What has to be known of a task's message when its run is over; `home` is the queue of what has none."""
    names = (
        "id", "root_id", "parent_id", "correlation_id", "reply_to", "group", "group_index", "chord", "chain",
        "callbacks", "errbacks", "ignore_result",
    )  # fmt: skip
    found = {name: getattr(request, name, None) for name in names}
    # Celery's own JSON, read back as plain JSON: what it writes of a date it reads again when it is sent.
    text = dumps({**found, "delivery_info": {}, "called_directly": False})  # type: ignore[no-untyped-call]
    kept: dict[str, Json] = json.loads(text)
    for name in ("chain", "callbacks", "errbacks", "chord"):
        kept[name] = sent_home(kept[name], home, ours)
    return kept


def value_of(journal: Journal, connection: Any, ended: Ended, limit: int, step: str | None = None) -> Json:
    """What is passed on: the results of the last steps by name, that of one step, or what went wrong."""
    if ended.state is not RunState.SUCCEEDED:
        error = {name: each for name, each in (ended.error or {}).items() if name != "traceback"}
        return {"run": ended.run, "workflow": ended.workflow, "state": ended.state.value, **error}
    if step is not None:
        return journal.result_of(connection, ended.run, step)
    end = journal.ending(connection, ended.run, limit)
    if end.results is None:
        log.warning("results.large", run=ended.run, bytes=end.size)
        return {_LIMIT_KEY: ended.run}
    return json.loads(end.results)


def revoke(dispatcher: Dispatcher, journal: Journal, connection: Any, ended: Ended) -> None:
    """Take back the tasks of other applications that nobody waits for any more."""
    if ended.state is not RunState.SUCCEEDED:
        tasks = journal.cancelled_tasks(connection, ended.run)
        if tasks:
            dispatcher.revoke(tasks)


def _sentence(ended: Ended) -> str:
    error = ended.error or {}
    why = f": step {error.get('step')!r}: {error.get('type')}: {error.get('message')}" if error else ""
    return f"run {ended.run} of workflow {ended.workflow!r} ended as {ended.state.value}{why}"
