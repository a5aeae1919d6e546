"""The hot path of the journal, said plainly: claim steps, complete them, hand them back.

The law: a function does what the statement of its name in sql/journal.sql does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..gates import PREFIX
from ..journal import SQL
from .counterparts import Rows, does
from .store import Row, Store, as_json, jsonb, of_json

OPEN = ("pending", "running", "paused")


_PLAIN = ("idx", "name", "action", "queue", "priority", "attempt", "failures")


def seconds_from(store: Store, seconds: float) -> Any:
    """The moment that lies so far from now."""
    return store.clock.now() + timedelta(seconds=seconds)


def options_of(step: Row) -> dict[str, Any]:
    """How a step is to be run."""
    return of_json(step["options"]) or {}


def claimed(step: Row) -> tuple[Any, ...]:
    """The columns of a step that whoever runs it is given."""
    plain = tuple(
        step[name] for name in ("idx", "name", "action", "queue", "priority", "attempt", "failures")
    )
    return (
        *plain,
        step["blocked"],
        of_json(step["inputs"]),
        of_json(step["bindings"]),
        step["refs"],
        of_json(step["options"]),
    )


def ready(step: Row) -> tuple[Any, ...]:
    """The columns of a step that is to be announced."""
    return tuple(step[name] for name in (*_PLAIN, "rank", "expect"))


@does(SQL["claim"])
def claim(
    store: Store,
    *,
    run: str,
    idx: Sequence[int],
    lease: str,
    worker: str,
    commit: str,
    seconds: float,
    timeout: float,
    grace: float,
) -> Rows:
    """Takes the ready ones of these steps; the first claim of a run begins it."""
    row = store.get("run", run)
    if row is None:
        return []
    now = store.clock.now()
    if row["state"] not in ("pending", "running"):
        return []
    found = []
    for each in idx:
        step = store.get("step", run, each)
        if step is None or step["state"] != "ready" or not (step["sent"] or step["due_at"] <= now):
            continue
        if step["attempt"] != step["failures"] and len(idx) > 1:
            continue  # it took a worker down: it is claimed alone
        if paused_queue(store, step["queue"]):
            continue
        step = _lease(store, step, lease, worker, min(seconds, limit_of(step, timeout, grace)))
        found.append(_taken(step, row))
    if found and row["state"] == "pending":
        store.update("run", row, state="running", started_at=now)
    return found


def paused_queue(store: Store, queue: str) -> bool:
    """Whether nothing of a queue may begin."""
    return store.get("pause", "queue", queue) is not None


def limit_of(step: Row, timeout: float, grace: float) -> float:
    """Seconds after which the body of a step is killed."""
    return float(options_of(step).get("timeout") or timeout) + grace


def _lease(store: Store, step: Row, lease: str, worker: str, seconds: float) -> Row:
    now = store.clock.now()
    return store.update(
        "step",
        step,
        state="running",
        attempt=step["attempt"] + 1,
        lease=lease,
        worker=worker,
        started_at=now,
        finished_at=None,
        progress=None,
        suspect=False,
        lease_until=now + timedelta(seconds=seconds),
    )


def _taken(step: Row, run: Row) -> tuple[Any, ...]:
    rest = (of_json(step["wait"]), step["rank"], step["expect"], run["workflow"], run["correlation_id"])
    return (*claimed(step), *rest)


@does(SQL["claim_ranked"])
def claim_ranked(
    store: Store,
    *,
    run: str,
    queue: str,
    actions: Sequence[str],
    lease: str,
    worker: str,
    commit: str,
    room: int,
    most: float,
    crowd: int,
    seconds: float,
    timeout: float,
    grace: float,
) -> Rows:
    """Takes the most urgent ready step that a run has in a queue; a short one among many takes along others."""
    row = store.get("run", run)
    ready = [
        step
        for step in store.where("step", run_id=run, queue=queue, state="ready")
        if step["rank"] is not None
    ]
    top = [
        step
        for step in sorted(ready, key=lambda step: (-step["priority"], -step["rank"], step["idx"]))
        if step["sent"] and step["attempt"] == step["failures"] and step["action"] in actions
    ]
    if row is None or not top or row["state"] not in ("pending", "running") or paused_queue(store, queue):
        return []
    if row["state"] == "pending":
        store.update("run", row, state="running", started_at=store.clock.now())
    first, *others = top
    longest = first["expect"]
    together = 1
    if longest is not None and longest <= most / 2 and len(ready) > crowd:
        together = max(1, min(room, int(most / max(longest, 0.001))))
    like_it = [step for step in others if step["expect"] is not None and step["expect"] <= (longest or 0.0)]
    found: Rows = []
    for step in (first, *like_it)[:together]:
        leased = _lease(store, step, lease, worker, min(seconds, limit_of(step, timeout, grace)))
        found.append(_taken(leased, row))
    return found


@does(SQL["leased"])
def leased(store: Store, *, run: str, lease: str) -> Rows:
    """The steps of a run under a lease."""
    return [(step["idx"],) for step in store.where("step", run_id=run, state="running", lease=lease)]


@does(SQL["complete"])
@does(SQL["complete_clean"])
def complete(
    store: Store,
    *,
    run: str,
    outcomes: str,
    new_lease: str,
    worker: str,
    queue: str,
    ahead: str,
    budget: float,
    room: int,
    short: float,
    seconds: float,
    timeout: float,
    grace: float,
) -> Rows:
    """Records the outcomes that still hold their lease, counts down what waits for them, and closes the run.

    Nobody runs ahead here: what becomes free is announced.
    """
    told = json.loads(outcomes)
    won = [(step, each) for each in told if (step := _record(store, run, each)) is not None]
    over = [(step, each) for step, each in won if step["state"] != "ready"]
    answer: Rows = []
    for step in _count_down(store, run, over):
        kind = step["waits_for"] if step["state"] == "parked" else "free"
        answer.append((kind, *claimed(step)[:8], None, None, None, None, step["rank"], step["expect"]))
    state, gates = _close(store, run, over)
    ours = [step["idx"] for step, _ in won]
    answer.append(("done", 0, state, *(None,) * 8, ours, gates, None, None))
    return answer


def _close(
    store: Store, run: str, over: Sequence[tuple[Row, dict[str, Any]]]
) -> tuple[str | None, list[str] | None]:
    """Counts the run down, and ends it where nothing is left; answers with its state and its gates."""
    ends = sum(1 for step, _ in over if not step["dependents"])
    row = store.get("run", run)
    if row is None or not ends or any(each["fatal"] for _, each in over):
        return None, None
    if row["state"] not in ("running", "paused"):
        return None, None
    left = row["missing"] - ends
    closed = {} if left else {"state": "succeeded", "finished_at": store.clock.now()}
    row = store.update("run", row, missing=left, **closed)
    return row["state"], row["gates"]


def patience(step: Row, since: datetime) -> datetime | None:
    """Until when a step that is ready since then waits for a worker."""
    seconds = options_of(step).get("queue_timeout")
    return None if seconds is None else since + timedelta(seconds=seconds)


@does(SQL["time_queue"])
def time_queue(store: Store, *, run: str, idx: Sequence[int]) -> None:
    """Steps that were ready when they were inserted, and may not wait for ever to be claimed."""
    for each in idx:
        step = store.get("step", run, each)
        if step is not None and step["state"] == "ready":
            store.update("step", step, lease_until=patience(step, store.clock.now()))


def _record(store: Store, run: str, outcome: dict[str, Any]) -> Row | None:
    """The step with its outcome; None where the lease is somebody else's by now."""
    step = store.get("step", run, outcome["idx"])
    if step is None or step["lease"] != outcome["lease"]:
        return None
    error, now = outcome.get("error"), store.clock.now()
    step = store.update(
        "step",
        step,
        state=outcome["state"],
        result=as_json(outcome.get("result")),
        error=as_json(error),
        failures=step["failures"] + outcome["fault"],
        lease=None,
        lease_until=patience(step, now + timedelta(seconds=outcome["delay"])),
        sent=False,
        due_at=now + timedelta(seconds=outcome["delay"]),
        finished_at=now,
    )
    if error is not None:
        kind = "step.retry" if outcome["state"] == "ready" else "step.failed"
        detail = as_json({**error, "delay": outcome["delay"]})
        store.insert("event", run_id=run, kind=kind, idx=step["idx"], attempt=step["attempt"], detail=detail)
    return step


def _count_down(store: Store, run: str, over: Iterable[tuple[Row, dict[str, Any]]]) -> Iterable[Row]:
    """The steps that wait for nobody any more. A negative dependent is an edge of order: no skip travels along it."""
    need: Counter[int] = Counter()
    blocked: Counter[int] = Counter()
    for step, outcome in over:
        for edge in step["dependents"]:
            child = ~edge if edge < 0 else edge
            need[child] += 1
            blocked[child] += bool(outcome["blocks"]) and edge >= 0
    for idx in sorted(need):
        child = store.get("step", run, idx)
        if child is None or child["state"] != "waiting":
            continue
        left = child["missing"] - need[idx]
        now = store.clock.now()
        skips = child["blocked"] + blocked[idx] > 0 and "join" not in options_of(child)
        parks = (child["waits_for"] or "").startswith(PREFIX) and not skips
        state, late = "parked" if parks else "ready", patience(child, now)
        free = {} if left else {"state": state, "sent": True, "due_at": now, "lease_until": late}
        child = store.update("step", child, missing=left, blocked=child["blocked"] + blocked[idx], **free)
        if free:
            yield child


@does(SQL["release"])
def release(store: Store, *, run: str, idx: Sequence[int], lease: Sequence[str]) -> Rows:
    """Hands back steps that were not begun; their attempt does not count."""
    found = []
    for each, own in zip(idx, lease, strict=True):
        step = store.get("step", run, each)
        if step is not None and step["lease"] == own:
            store.update(
                "step",
                step,
                state="ready",
                sent=True,
                due_at=store.clock.now(),
                attempt=step["attempt"] - 1,
                lease=None,
                lease_until=patience(step, store.clock.now()),
                started_at=None,
            )
            found.append((each,))
    return found


@does(SQL["renew"])
def renew(
    store: Store,
    *,
    run: Sequence[str],
    idx: Sequence[int],
    lease: Sequence[str],
    seconds: Sequence[float],
    progress: Sequence[str | None],
) -> Rows:
    """Prolongs leases that are still held and keeps what their bodies say of their progress."""
    found = []
    for each, place, own, long, said in zip(run, idx, lease, seconds, progress, strict=True):
        step = store.get("step", each, place)
        if step is not None and step["lease"] == own:
            shown = step["progress"] if said is None else jsonb(said)
            until = seconds_from(store, long)
            store.update("step", step, lease_until=until, suspect=False, progress=shown)
            found.append((each, place))
    return found


@does(SQL["results"])
def results(store: Store, *, run: str, idx: Sequence[int]) -> Rows:
    """The results of these steps."""
    found = [store.get("step", run, each) for each in idx]
    return [(step["idx"], of_json(step["result"])) for step in found if step is not None]


@does(SQL["result_of"])
def result_of(store: Store, *, run: str, names: Sequence[str]) -> Rows:
    """The result of a step by name; of a map that of the row behind it."""
    found = [step for step in store.where("step", run_id=run) if step["name"] in names]
    last = max(found, key=lambda step: str(step["name"]), default=None)
    return [] if last is None else [(of_json(last["result"]),)]


@does(SQL["names"])
def names(store: Store, *, run: str, idx: Sequence[int]) -> Rows:
    """The names of these steps."""
    found = [store.get("step", run, each) for each in idx]
    return [(step["idx"], step["name"]) for step in found if step is not None]


@does(SQL["params"])
def params(store: Store, *, run: str) -> Rows:
    """The parameters of a run."""
    row = store.get("run", run)
    return [] if row is None else [(of_json(row["params"]),)]
