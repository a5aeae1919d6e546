"""Effects that happen once, in memory: what the statements of intent and doubt do.

The law: that of the counterparts.
"""

from __future__ import annotations

import json

from ...tasks.errors import NotInProcess
from ..joint import SQL as JOINT
from ..journal import SQL
from .counterparts import Rows, does
from .steps import ready
from .store import Store, as_json, of_json


@does(JOINT["plan_freely"])
def plan_freely(store: Store, *, idle_ms: str) -> None:
    """The begin of a transaction in which a body writes what it likes. Raises NotInProcess."""
    raise NotInProcess(
        "ctx.transaction(), for there is no database that reads SQL; replace the body, or what it writes there"
    )


@does(SQL["intend"])
def intend(store: Store, *, run: str, idx: int, lease: str) -> Rows:
    """Announces an effect."""
    step = store.get("step", run, idx)
    if step is None or step["lease"] != lease:
        return []
    wait = of_json(step["wait"])
    if wait is not None:
        wait = {name: value for name, value in wait.items() if name not in ("doubt", "probe", "resolved")}
    store.update("step", step, intent=step["attempt"], wait=None if wait is None else as_json(wait))
    return [(idx,)]


@does(SQL["resolve"])
def resolve(store: Store, *, run: str, idx: int, answer: str, sent: bool) -> Rows:
    """Somebody says what became of an effect."""
    step = store.get("step", run, idx)
    if step is None or (step["state"], step["waits_for"]) != ("parked", "doubt"):
        return []
    wait = {name: value for name, value in (of_json(step["wait"]) or {}).items() if name != "probe"}
    wait["resolved"] = json.loads(answer)
    changes = {"state": "ready", "sent": sent, "due_at": store.clock.now(), "intent": None}
    return [ready(store.update("step", step, wait=as_json(wait), **changes))]
