"""Why a run does not move, in memory: its open steps, those of which one sentence is true as one row.

The law: a function does what the statement of its name in sql/why.sql does.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ..standing import SQL
from .clock import NEVER
from .counterparts import Rows, does
from .steps import options_of
from .store import Row, Store, of_json


@does(SQL["standing"])
def standing(store: Store, *, run: str, most: int, needs: int) -> Rows:
    """The groups of open steps, of each kind the first ones."""
    now = store.clock.now()
    kinds: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for step in sorted(store.where("step", run_id=run), key=lambda step: step["idx"]):
        if step["state"] in ("parked", "ready", "running"):
            kind = _kind(step, now)
            alike = kinds.setdefault((step["state"], kind), {})
            alike.setdefault(repr(_what(step, kind)), []).append(step)
    found = [
        (state, kind, steps, sum(map(len, alike.values())))
        for (state, kind), alike in kinds.items()
        for steps in list(alike.values())[: needs if kind == "now" else most]
    ]
    found.sort(key=lambda each: each[2][0]["idx"])
    return [(state, kind, len(steps), of, *_columns(steps)) for state, kind, steps, of in found]


def _kind(step: Row, now: datetime) -> str:
    if step["state"] == "parked":
        return str(step["waits_for"]).split(":")[0]
    if step["state"] == "ready":
        return "later" if not step["sent"] and step["due_at"] > now else "now"
    return "silent" if step["lease_until"] < now else "busy"


def _what(step: Row, kind: str) -> list[Any]:
    wait = of_json(step["wait"]) or {}
    never = _moment(step) is None
    told: dict[str, list[Any]] = {
        "now": [step["queue"], step["action"]],
        "later": [(of_json(step["error"]) or {}).get("type") if step["failures"] else None],
        "busy": [step["worker"]],
        "silent": [step["worker"]],
        "approval": [wait.get("who"), wait.get("needed"), wait.get("yes"), never],
        "task": [wait.get("name"), wait.get("queue")],
        "slot": [options_of(step).get("rate")],
        "action": [step["waits_for"], wait.get("misfit")],
    }
    return told.get(kind, [step["waits_for"], never])


def _moment(step: Row) -> datetime | None:
    found: datetime = step["started_at"] if step["state"] == "running" else step["due_at"]
    return None if found == NEVER else found


def _columns(steps: list[Row]) -> tuple[Any, ...]:
    first = steps[0]
    moments = [moment for step in steps if (moment := _moment(step)) is not None]
    leases = [step["lease_until"] for step in steps if step["lease_until"] is not None]
    plain = tuple(first[name] for name in ("name", "action", "queue", "waits_for"))
    told = tuple(of_json(first[name]) for name in ("wait", "options", "error"))
    times = (min(moments, default=None), max(moments, default=None), max(leases, default=None))
    return (*plain, *told, first["failures"], first["worker"], *times)
