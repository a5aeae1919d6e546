"""What the tick asks of the journal, said plainly: which steps to announce, and whose worker is silent.

The law: a function does what the statement of its name in sql/journal.sql does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from ..journal import SQL
from .counterparts import Rows, does
from .steps import limit_of, paused_queue
from .store import Store, jsonb, of_json
from .waiting import announced


@does(SQL["ready_queues"])
def ready_queues(store: Store) -> Rows:
    """The queues that have ready steps and are not paused."""
    queues = {step["queue"] for step in store.where("step", state="ready")}
    return [(queue,) for queue in sorted(queues) if not paused_queue(store, queue)]


@does(SQL["take_ready"])
def take_ready(store: Store, *, queue: str, sent: bool, age: float, limit: int) -> Rows:
    """Ready steps of a queue to be announced, the longest due first; no workflow comes with those of a paused run."""
    latest = store.clock.now() - timedelta(seconds=age)
    found = [
        step
        for step in store.where("step", state="ready", queue=queue, sent=sent)
        if step["due_at"] <= latest
    ]
    found.sort(key=lambda step: step["due_at"])
    now = store.clock.now()
    taken = [store.update("step", step, sent=True, due_at=now) for step in found[:limit]]
    return [announced(store, step, paused=False) for step in taken]


@does(SQL["suspect"])
def suspect(store: Store, *, limit: int, seconds: float) -> None:
    """The first time a lease runs out, its worker is only suspected."""
    now = store.clock.now()
    late = [step for step in store.where("step", state="running", suspect=False) if step["lease_until"] < now]
    for step in sorted(late, key=lambda step: step["lease_until"])[:limit]:
        store.update("step", step, suspect=True, lease_until=now + timedelta(seconds=seconds))


@does(SQL["take_expired"])
def take_expired(store: Store, *, lease: str, limit: int, timeout: float, grace: float) -> Rows:
    """Takes over steps whose lease has run out for good."""
    now = store.clock.now()
    found = []
    for step in store.where("step", state="running"):
        bound = timedelta(seconds=limit_of(step, timeout, grace))
        if step["lease_until"] < now and (step["suspect"] or step["started_at"] + bound < now):
            found.append(step)
    answer: Rows = []
    for step in sorted(found, key=lambda step: step["lease_until"])[:limit]:
        store.update("step", step, lease=lease, lease_until=now + timedelta(seconds=15))
        run = store.get("run", step["run_id"])
        plain = [step[name] for name in ("idx", "name", "attempt", "failures")]
        ran = (now - step["started_at"]).total_seconds()
        workflow = None if run is None else run["workflow"]
        answer.append(
            (
                step["run_id"],
                workflow,
                *plain,
                of_json(step["options"]),
                step["worker"],
                ran,
                step["intent"],
                of_json(step["wait"]),
            )
        )
    return answer


@does(SQL["durations"])
def durations(store: Store) -> Rows:
    """How long actions take: nobody measures here."""
    return [(row["action"], row["mean_ms"]) for row in store.all("action_stat")]


@does(SQL["learn"])
def learn(store: Store, *, action: Sequence[str], runs: Sequence[int], mean: Sequence[float]) -> None:
    """What was measured is not kept: the time here is not that of a clock."""


@does(SQL["beat"])
def beat(store: Store, *, name: str, detail: str) -> None:
    """Leaves a sign of life."""
    row = store.get("heartbeat", name)
    if row is None:
        store.insert("heartbeat", name=name, at=store.clock.now(), detail=jsonb(detail))
    else:
        store.update("heartbeat", row, at=store.clock.now(), detail=jsonb(detail))


@does(SQL["clock"])
def clock(store: Store) -> Rows:
    """What time it is, in seconds since 1970."""
    return [(store.clock.now().timestamp(),)]
