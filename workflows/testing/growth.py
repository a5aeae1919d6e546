"""Growth, said plainly: what makes room for more steps, holds back what waits, and finds steps by their names.

The law: a function does what the statement of its name in sql/journal.sql does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..journal import SQL
from .counterparts import Rows, does
from .store import Row, Store, as_json, jsonb, of_json

_OWN = re.compile(r"[^.\[]+(\[\])?")


@does(SQL["grow"])
def grow(store: Store, *, run: str, count: int, sinks: int, limited: bool, tasks: bool) -> Rows:
    """Makes room for more steps and answers with the first free id."""
    row = store.get("run", run)
    if row is None or row["state"] not in ("running", "paused"):
        return []
    more = {"gates": row["gates"] or []} if limited else {}
    if tasks:
        more |= {"hooks": as_json({**(of_json(row["hooks"]) or {}), "tasks": True}), "follow": True}
    store.update("run", row, steps=row["steps"] + count, missing=row["missing"] + sinks, **more)
    return [(row["steps"],)]


@does(SQL["tenant"])
def tenant(store: Store, *, run: str) -> Rows:
    """Whose run it is."""
    row = store.get("run", run)
    return [] if row is None else [(row["tenant"],)]


@does(SQL["widen"])
def widen(store: Store, *, run: str, idx: int, count: int, inputs: str) -> Rows:
    """Makes the gathering step behind a map or loop wait for the items, or the next turn."""
    grown = store.get("step", run, idx)
    behind = None if grown is None else store.get("step", run, grown["dependents"][0])
    if behind is None or behind["state"] != "waiting":
        return []
    store.update("step", behind, missing=behind["missing"] + count, inputs=jsonb(inputs))
    return [(behind["idx"],)]


@does(SQL["hold"])
def hold(store: Store, *, run: str, idx: int, lease: str, count: int) -> Rows:
    """Makes what waits for a growing step wait for more."""
    step = store.get("step", run, idx)
    if step is None or step["lease"] != lease:
        return []
    for each in step["dependents"]:
        behind = store.get("step", run, ~each if each < 0 else each)
        if behind is not None:
            store.update("step", behind, missing=behind["missing"] + count)
    return [(list(step["dependents"]),)]


@does(SQL["find"])
def find(store: Store, *, run: str, names: Sequence[str]) -> Rows:
    """Steps by their names."""
    return [_found(step) for step in store.where("step", run_id=run) if step["name"] in names]


@does(SQL["below"])
def below(store: Store, *, run: str, prefix: str) -> Rows:
    """What a step has appended."""
    found = sorted(store.where("step", run_id=run), key=lambda step: step["idx"])
    return [
        _found(step)
        for step in found
        if step["name"].startswith(prefix) and _OWN.fullmatch(step["name"], len(prefix))
    ]


@does(SQL["gather"])
def gather(store: Store, *, run: str, first: int, count: int, limit: int, policy: str) -> Rows:
    """The results of neighbouring steps as one JSON list, where that is not too large."""
    texts = []
    for idx in range(first, first + count):
        step = store.get("step", run, idx)
        if step is None or (step["state"] == "failed" and policy == "skip"):
            continue
        text = step["result"]
        if step["state"] == "failed" and policy == "collect":
            error = of_json(step["error"]) or {}
            text = as_json({"error": {name: error.get(name) for name in ("type", "message")}})
        texts.append(text)
    size = sum(len(text.encode()) + 2 for text in texts if text is not None)
    listed = "[" + ", ".join("null" if text is None else text for text in texts) + "]"
    return [(size, listed if size <= limit else None)]


@does(SQL["failed"])
def failed(store: Store, *, run: str, idx: int) -> Rows:
    """Whether a step failed."""
    step = store.get("step", run, idx)
    return [(1,)] if step is not None and step["state"] == "failed" else []


@does(SQL["succeeded"])
def succeeded(store: Store, *, run: str, first: int, count: int) -> Rows:
    """How many of neighbouring steps succeeded."""
    found = [store.get("step", run, idx) for idx in range(first, first + count)]
    return [(sum(1 for step in found if step is not None and step["state"] == "succeeded"),)]


def _found(step: Row) -> tuple[Any, ...]:
    policy = (of_json(step["options"]) or {}).get("on_failure")
    result, error = of_json(step["result"]), of_json(step["error"])
    return (step["idx"], step["name"], step["state"], result, error, isinstance(policy, dict))
