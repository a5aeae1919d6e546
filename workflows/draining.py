"""Whether this worker is being stopped: known to all processes of its pool.

The law: one byte of memory that the worker made before it forked, so that a child knows of the shutdown as soon as
its parent does, and asks for it at no cost. A worker that drains begins nothing: messages that reach it go back
to their queue, what it has claimed and not begun is handed back, and bodies have `TRELLIS_SHUTDOWN_SECONDS` to end.
Those that have not by then are stopped and handed back as well: a planned shutdown is nobody's crash.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from celery import Task

from ..tasks.transport import HINT
from .dispatch import BROKER_GONE

_WORKS, _DRAINS, _HANDS_BACK = 0, 1, 2
_state = mmap.mmap(-1, 1)  # anonymous and shared: forked children see what the parent writes


def reset() -> None:
    """The worker starts: the memory is its own from here on, whoever it was forked from."""
    global _state
    _state = mmap.mmap(-1, 1)


def begin() -> None:
    """Begin nothing more."""
    _state[0] = max(_state[0], _DRAINS)


def hand_back() -> None:
    """Stop the bodies that still run."""
    _state[0] = _HANDS_BACK


def draining() -> bool:
    """Whether nothing may begin any more."""
    return _state[0] != _WORKS


def handing_back() -> bool:
    """Whether what still runs is to be stopped."""
    return _state[0] == _HANDS_BACK


def passed_on(task: Task, message: Mapping[str, Any]) -> bool:
    """Send a bundle's message back to its queue, unread, where this worker drains; whether it was."""
    if not draining():
        return False
    sent = task.request.delivery_info or {}
    with suppress(*BROKER_GONE):  # the tick announces its steps again
        task.app.send_task(
            task.name,
            kwargs=dict(message),
            queue=sent.get("routing_key") or task.app.conf.task_default_queue,
            priority=sent.get("priority"),
            ignore_result=True,
            argsrepr=task.request.argsrepr,
            root_id=task.request.root_id,
            group_id=task.request.group,
            headers={HINT: True},
        )
    return True
