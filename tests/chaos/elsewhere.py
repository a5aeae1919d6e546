"""An application that knows nothing of Trellis: its task is a step of some programs, by its name."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from . import ledger, trigger
from .harm import FAULTS
from .sums import total
from .trigger import passed

trigger.learn(FAULTS)
app = Celery("elsewhere", broker=os.environ.get("CELERY_BROKER_URL"))
app.conf.task_default_queue = "elsewhere"


@app.task(name="elsewhere.add", bind=True)
def add(self: Task, tag: str, step: str, value: int, parts: list[Any]) -> int:
    """An effect, and a sum; `tag` and `step` say whose."""
    for kind in ("begin", "effect", "end"):
        ledger.write(os.environ["CHAOS_FOLDER"], kind, tag, step, 1, self.request.id)
        passed("inside a foreign task")
    return value + total(parts)
