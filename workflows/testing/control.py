"""What people do to runs from outside, said plainly.

The law: a function does what the statement of its name in sql/control.sql does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..control import SQL
from ..gates import first_line
from .counterparts import Rows, does
from .steps import options_of, ready
from .store import Row, Store, as_json, of_json

ENDED = ("succeeded", "failed", "cancelled")


@does(SQL["lock_run"])
def lock_run(store: Store, *, run: str) -> Rows:
    """A run's state, workflow, the step that failed it, and how many final steps are missing."""
    row = store.get("run", run)
    if row is None:
        return []
    return [
        (
            row["state"],
            row["workflow"],
            (of_json(row["error"]) or {}).get("step"),
            row["missing"],
        )
    ]


@does(SQL["undone_by"])
def undone_by(store: Store, *, run: str) -> Rows:
    """The run that compensated this one."""
    return [(row["id"],) for row in store.where("run", origin=run, origin_kind="compensation")[:1]]


@does(SQL["plan_whole"])
def plan_whole(store: Store) -> Rows:
    """Nothing is planned here."""
    return [("on",)]


def fatal_steps(store: Store, run: str) -> set[int]:
    """The steps that a run did not survive: its dead letters, discarded ones too."""
    told = {row["idx"] for row in store.where("event", run_id=run, kind="dead.discarded")}
    return told | {row["idx"] for row in store.where("dead_letter", run_id=run)}


@does(SQL["reopen_steps"])
def reopen_steps(store: Store, *, run: str, step: str | None, sent: bool) -> Rows:
    """Opens the steps again that were cancelled, or failed and took the run with them."""
    fatal = fatal_steps(store, run)
    again: dict[int, Row] = {
        each["idx"]: each
        for each in store.where("step", run_id=run)
        if each["state"] == "cancelled"
        or (each["state"] == "failed" and (each["name"] == step or each["idx"] in fatal))
    }
    need = Counter(~edge if edge < 0 else edge for each in again.values() for edge in each["dependents"])
    opened = [
        store.update(
            "step",
            each,
            state="waiting" if need[idx] else "ready" if first_line(options_of(each)) is None else "parked",
            waits_for=first_line(options_of(each)),
            missing=need[idx],
            attempt=0,
            failures=0,
            sent=sent,
            suspect=False,
            due_at=store.clock.now(),
            **dict.fromkeys(_EMPTY),
        )
        for idx, each in again.items()
    ]
    sinks = sum(1 for each in opened if not each["dependents"])
    found: Rows = [
        (*ready(each)[:5], each["rank"], each["expect"], None, None)
        for each in opened
        if each["state"] == "ready"
    ]
    return [*found, (*[None] * 7, len(opened), sinks)]


_EMPTY = (
    "lease", "lease_until", "worker", "started_at", "finished_at", "progress", "result", "error", "wait",
)  # fmt: skip


@does(SQL["reopen_run"])
def reopen_run(store: Store, *, run: str, missing: int) -> Rows:
    """The deadline moves on by the time that has passed since the run was accepted."""
    row = store.where("run", id=run)[0]
    for line in row["gates"] or ():
        store.insert("permit", gate=line, run_id=run, idx=-1)
    now = store.clock.now()
    parent = None if row["parent_run"] is None else store.get("run", row["parent_run"])
    paused = store.get("pause", "workflow", row["workflow"]) is not None
    paused = paused or (parent is not None and parent["state"] == "paused")
    deadline = row["deadline_at"]
    store.update(
        "run",
        row,
        state="paused" if paused else "running",
        missing=missing,
        error=None,
        finished_at=None,
        started_at=row["started_at"] or now,
        follow=row["hooks"] is not None,
        hooks=_without_waits(row),
        deadline_at=None if deadline is None else deadline + (now - row["created_at"]),
    )
    return [("paused" if paused else "running",)]


@does(SQL["bring_back"])
def bring_back(store: Store, *, run: str) -> None:
    """Its dead letters are gone."""
    for row in store.where("dead_letter", run_id=run):
        store.delete("dead_letter", row)


@does(SQL["discard"])
def discard(store: Store, *, run: str, idx: int | None) -> Rows:
    """Removes the dead letters of a run, or of one step."""
    found = [row for row in store.where("dead_letter", run_id=run) if idx is None or row["idx"] == idx]
    for row in found:
        store.delete("dead_letter", row)
    return [(row["idx"], row["step"]) for row in found]


@does(SQL["to_follow"])
def to_follow(store: Store, *, limit: int) -> Rows:
    """Runs whose end something has still to follow."""
    found = [row for row in store.where("run", follow=True) if row["state"] in ENDED]
    return [(row["id"],) for row in sorted(found, key=lambda row: row["finished_at"])[:limit]]


@does(SQL["take_ended"])
def take_ended(store: Store, *, run: str) -> Rows:
    """Such a run."""
    row = store.get("run", run)
    if row is None or not row["follow"] or row["state"] not in ENDED:
        return []
    told = [of_json(row[name]) for name in ("params", "error", "hooks")]
    return [(row["id"], row["workflow"], row["state"], *told, row["correlation_id"])]


@does(SQL["followed"])
def followed(store: Store, *, run: str) -> None:
    """Nothing more follows."""
    for row in store.where("run", id=run):
        store.update("run", row, follow=False, hooks=_without_waits(row))


@does(SQL["postpone"])
def postpone(store: Store, *, run: str) -> None:
    """Its compensation has to wait."""
    for row in store.where("run", id=run):
        store.update("run", row, hooks=as_json({**(of_json(row["hooks"]) or {}), "waits": True}))


def _without_waits(row: Row) -> str | None:
    hooks = of_json(row["hooks"])
    return None if hooks is None else as_json({name: each for name, each in hooks.items() if name != "waits"})


@does(SQL["lingers"])
def lingers(store: Store, *, run: str) -> Rows:
    """Of the bodies that may be at work although their run, here or below, is over, the one that may last longest."""
    runs, found = [run], []
    for each in runs:
        runs += [child["id"] for child in store.where("run", parent_run=each)]
        found += [
            (each, step["name"], step["worker"], step["lease_until"])
            for step in store.where("step", run_id=each, state="cancelled")
            if step["lease"] is not None and step["lease_until"] > store.clock.now()
        ]
    return sorted(found, key=lambda row: row[3], reverse=True)[:1]


@does(SQL["let_go"])
def let_go(store: Store, *, run: str, leases: Sequence[object]) -> Rows:
    """The bodies under these leases are over; the runs whose compensation waited for them."""
    over = {str(lease)[::-1].replace("-", "") for lease in leases}
    kept = [step for step in store.where("step", run_id=run, state="cancelled") if step["lease"] is not None]
    ended = [step for step in kept if step["lease"].replace("-", "") in over]
    for step in ended:
        store.update("step", step, lease=None, lease_until=None)
    found: Rows = []
    row = store.get("run", run) if ended else None
    while row is not None:
        if row["follow"] and "waits" in (of_json(row["hooks"]) or {}):
            found.append((row["id"],))
        row = None if row["parent_run"] is None else store.get("run", row["parent_run"])
    return found


@does(SQL["outcomes"])
def outcomes(store: Store, *, run: str, idx: Sequence[int]) -> Rows:
    """How these steps ended."""
    found = [store.get("step", run, each) for each in idx]
    return [
        (step["idx"], step["state"], step["finished_at"], step["name"]) for step in found if step is not None
    ]


@does(SQL["open_linked"])
def open_linked(
    store: Store, *, run: str, workflow: str, steps: int, missing: int, kind: str, origin: str
) -> None:
    """A run that repeats or undoes another one."""
    row = store.where("run", id=origin)[0]
    same = {name: row[name] for name in ("definition", "correlation_id", "params", "tags", "tenant")}
    store.insert(
        "run",
        id=run,
        workflow=workflow,
        state="pending",
        steps=steps,
        missing=missing,
        origin=origin,
        origin_kind=kind,
        **same,
    )
    for tag in row["tags"]:
        store.insert("run_tag", tag=tag, run_id=run)


@does(SQL["stand_ins"])
def stand_ins(
    store: Store,
    *,
    run: str,
    origin: str,
    idx: Sequence[int],
    place: Sequence[int],
    dependents: Sequence[int],
) -> None:
    """Rows that stand in for finished steps of another run."""
    for each, at in zip(idx, place, strict=True):
        step = store.get("step", origin, each)
        if step is None:
            continue
        same = {
            name: step[name]
            for name in ("action", "queue", "priority", "result", "started_at", "finished_at")
        }
        store.insert(
            "step",
            run_id=run,
            idx=at,
            name=step["name"].removesuffix("[]"),
            state="skipped" if step["result"] is None else "succeeded",
            missing=0,
            dependents=list(dependents),
            **same,
        )
