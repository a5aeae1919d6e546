"""Reruns, said plainly: a new run that reuses what an old one has finished.

The law: a function does what the statement of its name in sql/control.sql does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from ..control import SQL
from ..gates import ENTRY, first_line, run_line
from .control import fatal_steps
from .counterparts import Rows, does
from .steps import options_of, patience, ready
from .store import Store, as_json, jsonb, of_json

_AS_PLANNED = ("idx", "name", "action", "queue", "priority", "dependents", "rank", "expect")


@does(SQL["read_origin"])
def read_origin(store: Store, *, run: str) -> Rows:
    """The run that is to be repeated."""
    row = store.where("run", id=run)[0]
    return [
        (
            row["state"],
            row["finished_at"],
            of_json(row["edits"]),
            of_json(row["hooks"]),
            row["steps"],
            row["tenant"],
        )
    ]


@does(SQL["read_steps"])
def read_steps(store: Store, *, run: str) -> Rows:
    """Every step of a run, with whether the run did not survive it."""
    row = store.where("run", id=run)[0]
    named, fatal = (of_json(row["error"]) or {}).get("step"), fatal_steps(store, run)
    found = sorted(store.where("step", run_id=run), key=lambda step: int(step["idx"]))
    return [
        (
            s["idx"],
            s["name"],
            s["state"],
            s["state"] == "failed" and (s["name"] == named or s["idx"] in fatal),
        )
        for s in found
    ]


@does(SQL["open_rerun"])
def open_rerun(
    store: Store,
    *,
    run: str,
    origin: str,
    params: str,
    steps: int,
    missing: int,
    tenant: str | None,
    gates: Sequence[str] | None,
    edits: str | None,
    hooks: str | None,
) -> None:
    """A run that repeats another one, with the time limit that that one had. It takes no place in a limit."""
    row = store.where("run", id=origin)[0]
    same = {name: row[name] for name in ("workflow", "definition", "tags")}
    paused = store.get("pause", "workflow", row["workflow"]) is not None
    limit = None if row["deadline_at"] is None else row["deadline_at"] - row["created_at"]
    store.insert(
        "run",
        id=run,
        correlation_id=run if row["correlation_id"] == origin else row["correlation_id"],
        state="paused" if paused else "pending",
        params=jsonb(params),
        steps=steps,
        missing=missing,
        origin=origin,
        origin_kind="rerun",
        tenant=tenant,
        gates=None if gates is None else list(gates),
        edits=None if edits is None else jsonb(edits),
        hooks=None if hooks is None else jsonb(hooks),
        follow=hooks is not None,
        deadline_at=None if limit is None else store.clock.now() + limit,
        **same,
    )
    for tag in row["tags"]:
        store.insert("run_tag", tag=tag, run_id=run)


@does(SQL["read_options"])
def read_options(store: Store, *, run: str, idx: Sequence[int]) -> Rows:
    """How these steps were to be run."""
    found = [store.get("step", run, each) for each in idx]
    return [(step["idx"], of_json(step["options"])) for step in found if step is not None]


@does(SQL["copy_reused"])
def copy_reused(store: Store, *, run: str, origin: str, idx: Sequence[int]) -> None:
    """The finished steps that a rerun reuses, as they are."""
    for each in idx:
        step = store.get("step", origin, each)
        if step is not None:
            fresh = {
                "run_id": run,
                "sent": False,
                "suspect": False,
                "lease": None,
                "lease_until": None,
                "intent": None,
            }
            store.insert("step", **{**step, **fresh})


@does(SQL["copy_again"])
def copy_again(
    store: Store, *, run: str, origin: str, idx: Sequence[int], changed: str, sent: bool, own: bool
) -> Rows:
    """The steps that a rerun computes again, as they were planned, or as edits have made them."""
    again = [step for each in idx if (step := store.get("step", origin, each)) is not None]
    edited = {each["idx"]: each for each in json.loads(changed)}
    waits = Counter(~edge if edge < 0 else edge for step in again for edge in step["dependents"])
    blocked: Counter[int] = Counter()
    for step in store.where("step", run_id=run):
        lost = step["state"] == "failed" and options_of(step).get("on_failure") == "skip"
        if step["state"] == "skipped" or lost:
            blocked.update(edge for edge in step["dependents"] if edge >= 0)
    answer: Rows = []
    for step in again:
        place, change = step["idx"], edited.get(step["idx"])
        row = {name: step[name] for name in (*_AS_PLANNED, "refs", "inputs", "bindings", "options", "fair")}
        if change is not None:
            row |= {name: as_json(change.get(name)) for name in ("inputs", "bindings")}
            if change.get("options") is not None:
                row["options"] = as_json(change["options"] or None)
            row |= {"refs": change.get("refs"), "fair": change.get("fair")}
        if own and row["options"] is not None:
            row["options"] = row["options"].replace(run_line(origin), run_line(run))
        options = options_of(row)
        line = first_line(options)
        skips = blocked[place] > 0 and "join" not in options
        state = "waiting" if waits[place] else "ready" if line is None or skips else "parked"
        new = store.insert(
            "step",
            run_id=run,
            state=state,
            missing=waits[place],
            blocked=blocked[place],
            sent=sent,
            lease_until=None if waits[place] else patience(row, store.clock.now()),
            waits_for=line,
            **row,
        )
        if new is not None and state != "waiting":
            answer.append((*ready(new)[:5], new["rank"], new["expect"], line if state == "parked" else None))
    return answer


@does(SQL["line_up"])
def line_up(store: Store, *, run: str, tenant: str | None, line: str, limit: int) -> None:
    """The first of the steps that may begin stands in the line for all of them."""
    found = [step for step in store.where("step", run_id=run) if step["state"] in ("ready", "parked")]
    for place, step in enumerate(sorted(found, key=lambda step: int(step["idx"]))):
        options = {name: each for name, each in options_of(step).items() if name != "entry"}
        options |= {} if place else {"entry": [line, limit]}
        store.update(
            "step",
            step,
            state="parked",
            lease_until=None,
            fair=tenant or "",
            waits_for=f"{ENTRY}{run}" if place else line,
            options=as_json(options) if step["options"] is not None or options else None,
        )
