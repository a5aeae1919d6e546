"""Celery signatures as data: taken from one application, kept in the journal, sent by another.

The law: a signature is kept as JSON, with the queue that its own application would send it to, since ours routes
otherwise. What is no signature, or no JSON, is refused where it is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery
from celery.canvas import Signature
from kombu.utils.json import dumps

from ..tasks.errors import DefinitionError
from .contract import unkeepable
from .records import Json
from .spec import CallSpec


def hooks(on_success: Any, on_failure: Any) -> dict[str, Json]:
    """The signatures that are to follow a run, as an entry of its hooks. Raises DefinitionError."""
    kept = {
        kind: [captured(each, name) for each in (given if isinstance(given, list | tuple) else [given])]
        for kind, name, given in (
            ("success", "on_success=", on_success),
            ("failure", "on_failure=", on_failure),
        )
    }
    return {"signatures": kept} if any(kept.values()) else {}


def calls(workflow: str, on_success: Any, on_failure: Any) -> dict[str, Json] | None:
    """Signatures of tasks as a definition has them under `then`; None without any. Raises DefinitionError."""
    found: dict[str, Json] = {}
    try:
        kept: Any = hooks(on_success, on_failure).get("signatures") or {}
        for kind, signatures in kept.items():
            found[kind] = [_call(each, f"on_{kind}=") for each in signatures]
    except DefinitionError as error:
        raise DefinitionError(str(error), workflow=workflow) from error
    return found or None


def _call(kept: Mapping[str, Any], what: str) -> dict[str, Json]:
    options = dict(kept["options"])
    queue, priority = options.pop("queue", None), options.pop("priority", None)
    if kept.get("subtask_type") is not None:
        raise DefinitionError(
            f"{what} of a workflow takes signatures of tasks, no {kept['subtask_type']}: give it to Client.start"
        )
    if options:
        raise DefinitionError(
            f"{what} has the option {next(iter(options))!r}: a signature of a workflow has queue and priority"
        )
    return {
        "task": kept["task"], "args": kept["args"], "kwargs": kept["kwargs"], "queue": queue,
        "priority": None if priority is None else 9 - priority, "immutable": bool(kept["immutable"]),
    }  # fmt: skip


def signature_of(call: CallSpec) -> dict[str, Json]:
    """A call of a definition as the signature that is sent."""
    options: dict[str, Json] = {} if call.queue is None else {"queue": call.queue}
    if call.priority is not None:
        options["priority"] = 9 - call.priority  # on Redis 0 is the most urgent
    return {
        "task": call.task, "args": call.args, "kwargs": call.kwargs, "options": options,
        "subtask_type": None, "immutable": call.immutable,
    }  # fmt: skip


def captured(signature: Any, what: str) -> dict[str, Json]:
    """A signature as JSON; `what` names it in the error. Raises DefinitionError."""
    if not isinstance(signature, Signature):
        raise DefinitionError(f"{what} is a Celery signature such as task.s(1), not {signature!r}")
    copy = signature.clone()
    for each in walk(copy):
        queue = queue_of(each)
        if queue is not None:
            each.options["queue"] = queue
    try:
        # Celery's own JSON, and read back as plain JSON: what it writes of a date it reads again when it is sent.
        found: dict[str, Json] = json.loads(dumps(copy))  # type: ignore[no-untyped-call]  # kombu is half typed
        problem = unkeepable(found)
    except (TypeError, ValueError) as error:
        problem = str(error)
    if problem is not None:
        raise DefinitionError(f"{what} has an argument that is no JSON: {problem}")
    return found


def walk(signature: Any) -> Iterator[Signature]:
    """The signatures of plain tasks in a canvas."""
    if isinstance(signature, list | tuple):
        for each in signature:
            yield from walk(each)
        return
    if not isinstance(signature, Signature):
        return
    parts = [signature.kwargs.get(name) for name in ("tasks", "header", "body")]
    if signature.subtask_type in ("chain", "group", "chord"):
        for part in parts:
            yield from walk(part)
    else:
        yield signature


def queue_of(signature: Signature) -> str | None:
    """The queue that its own application sends it to; None where that names an exchange instead."""
    app = signature.app
    given = dict(signature.options)
    task = app.tasks.get(signature.task)
    own = {} if task is None else task._get_exec_options()
    routed = app.amqp.router.route({**own, **given}, signature.task, signature.args, signature.kwargs)
    queue = routed.get("queue")
    return None if queue is None else str(getattr(queue, "name", queue))


def sent_home(kept: Any, home: str, ours: Celery) -> Any:
    """Signatures as JSON, with a queue for those that have none and are no tasks of ours: else our workers would get
    them, who do not know them.
    """
    if isinstance(kept, list):
        return [sent_home(each, home, ours) for each in kept]
    if not isinstance(kept, dict) or "task" not in kept:
        return kept
    found = dict(kept)
    inner = found.get("kwargs") or {}
    if found.get("subtask_type") in ("chain", "group", "chord"):
        parts = {
            name: sent_home(inner[name], home, ours) for name in ("tasks", "header", "body") if name in inner
        }
        return {**found, "kwargs": {**inner, **parts}}
    options = found.get("options") or {}
    if found["task"] in ours.tasks or options.get("queue") or options.get("exchange"):
        return found
    return {**found, "options": {**options, "queue": home}}
