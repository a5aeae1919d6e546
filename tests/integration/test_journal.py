"""The journal under concurrency: fences, joins and keys, with many threads on one database."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
import steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.errors import IdleInTransactionSessionTimeout
from stack import Stack, eventually

from trellis.tasks.database import Database
from trellis.workflows import Client, Workflow
from trellis.workflows.records import Outcome
from trellis.workflows.states import STEP_MOVES, RunState, StepState


def succeeded(idx: int, lease: str) -> Outcome:
    return Outcome(idx, lease, StepState.SUCCEEDED, b"1", ended=time.monotonic())


def test_parents_that_finish_at_once_free_their_child_once(stack: Stack) -> None:
    """Of many parents that report at the same moment exactly one sees the child become ready, at every level."""
    width, levels = 12, 6
    wf = Workflow("joins", register=False)
    above: list[object] = []
    for level in range(levels):
        above = [wf.step(f"s{level}_{n}", steps.noop, after=above) for n in range(width)]
    run = stack.client.start(wf).id
    journal = stack.engine.journal
    freed: list[int] = []
    with ThreadPoolExecutor(width) as pool:
        for level in range(levels):
            ready = [level * width + n for n in range(width)]
            claimed = [journal.claim(run, [idx], "w")[0][0] for idx in ready]
            gate = threading.Barrier(width)

            def report(step: object, gate: threading.Barrier = gate) -> list[int]:
                gate.wait()
                done = journal.complete(run, [succeeded(step.idx, step.lease)])  # type: ignore[attr-defined]
                return [each.idx for each in done.free]

            freed += [idx for found in pool.map(report, claimed) for idx in found]
    assert sorted(freed) == list(range(width, width * levels))
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_who_falls_silent_in_a_transaction_loses_its_locks_after_two_leases(stack: Stack) -> None:
    """A stopped process keeps its connection: the run that it has locked would wait for it, and cancel with it."""
    wf = Workflow("locked", register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf).id
    stopped = Database(stack.database_url, stack.settings.model_copy(update={"lease_seconds": 0.1}))
    silent = stopped.transaction()
    connection = silent.__enter__()
    connection.execute("SELECT 1 FROM run WHERE id = %s FOR UPDATE", (run,))
    stack.client.cancel(run)  # waits for the lock, and then has it
    with pytest.raises(IdleInTransactionSessionTimeout) as ended:
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):  # as with any connection that is lost: it is done again
        silent.__exit__(ended.type, ended.value, None)
    stopped.close()
    assert stack.client.get(run).state is RunState.CANCELLED


def test_a_run_begins_with_the_first_step_that_is_taken(stack: Stack) -> None:
    """A stray message for one that is not due, or for none at all, changes nothing."""
    wf = Workflow("later", register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf, delay=3600).id
    stack.engine.run_bundle("noop", run, [0])
    stack.engine.run_bundle("noop", run, [7])
    found = stack.client.get(run)
    assert (found.state, found.started_at) == (RunState.PENDING, None)
    stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s", run)
    [claimed] = stack.engine.journal.claim(run, [0], "w")[0]
    assert claimed.attempt == 1
    found = stack.client.get(run)
    assert found.state is RunState.RUNNING
    assert found.started_at is not None


def test_a_step_is_claimed_by_one_of_many(stack: Stack) -> None:
    """The same message at eight workers: one lease."""
    wf = Workflow("claims", register=False)
    wf.map("each", steps.noop, over=list(range(50)))
    run = stack.client.start(wf).id
    stack.engine.run_bundle("trellis.map", run, [0])
    ids = list(range(2, 52))
    with ThreadPoolExecutor(8) as pool:
        claims = list(
            pool.map(lambda n: stack.engine.journal.claim(run, random.sample(ids, 50), f"w{n}")[0], range(8))
        )
    claimed = [step.idx for each in claims for step in each]
    assert sorted(claimed) == ids


def test_an_outcome_under_another_lease_changes_nothing(stack: Stack) -> None:
    """The fence: a late report leaves no trace, whatever it says."""
    wf = Workflow("fence", register=False)
    first = wf.step("first", steps.noop)
    wf.step("second", steps.noop, after=[first])
    run = stack.client.start(wf).id
    [mine] = stack.engine.journal.claim(run, [0], "w")[0]
    before = stack.rows("SELECT * FROM step WHERE run_id = %s ORDER BY idx", run)
    late = stack.engine.journal.complete(run, [succeeded(0, str(uuid4()))])
    assert (late.won, late.free, late.closed) == (frozenset(), [], False)
    assert stack.rows("SELECT * FROM step WHERE run_id = %s ORDER BY idx", run) == before
    assert stack.engine.journal.complete(run, [succeeded(0, mine.lease)]).won == {0}
    assert stack.engine.journal.complete(run, [succeeded(0, mine.lease)]).won == frozenset()


def test_the_same_key_at_once_is_one_run(stack: Stack) -> None:
    """Eight clients start the same workflow with the same key: one run, and all get it."""
    wf = Workflow("keyed", register=False)
    wf.step("only", steps.noop)
    clients = [Client(stack.settings) for _ in range(8)]
    gate = threading.Barrier(8)

    def start(client: Client) -> str:
        gate.wait()
        return client.start(wf, key="order-1").id

    try:
        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(start, clients))
    finally:
        for client in clients:
            client.close()
    assert len(ids) == 1
    assert [run.id for run in stack.client.list()] == list(ids)


def test_a_cancel_against_completions_never_deadlocks_for_good(stack: Stack) -> None:
    """Cancel locks all rows of a run while workers complete some: both come through, the run is cancelled."""
    wf = Workflow("race", register=False)
    above: list[object] = []
    for level in range(20):
        above = [wf.step(f"s{level}_{n}", steps.noop, after=above) for n in range(10)]
    runs = [stack.client.start(wf).id for _ in range(5)]
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(stack.drain, run) for run in runs]
        ended = [stack.client.cancel(run) for run in runs]
        for each in work:
            each.result()
    for run, cancelled in zip(runs, ended, strict=True):
        expected = {"cancelled", "succeeded"} if cancelled else {"succeeded"}
        assert stack.client.get(run).state.value == ("cancelled" if cancelled else "succeeded")
        assert {step.state.value for step in stack.client.steps(run)} <= expected


@st.composite
def dags(draw: st.DrawFn) -> list[tuple[list[int], str, int]]:
    """Steps as (parents, what the step does, a number)."""
    size = draw(st.integers(1, 14))
    kinds = st.sampled_from(["add", "add", "add", "fail", "default", "skip", "when", "map", "flaky"])
    return [
        (
            sorted(draw(st.sets(st.integers(0, max(0, n - 1)), max_size=min(n, 4)))) if n else [],
            draw(kinds),
            draw(st.integers(0, 3)),
        )
        for n in range(size)
    ]


def reference(dag: list[tuple[list[int], str, int]]) -> tuple[str, dict[int, tuple[str, object]]]:
    """A run as it should end, worked out in one pure pass; a step that fails the run ends the account."""
    known: dict[int, tuple[str, object]] = {}
    for n, (parents, kind, number) in enumerate(dag):
        if any(known[p][0] in ("skipped", "blocking") for p in parents):
            known[n] = ("skipped", None)
            continue
        value = number + sum(_number(known[p][1]) for p in parents)
        if kind == "when" and not value > 2:
            known[n] = ("skipped", None)
        elif kind == "skip":
            known[n] = ("blocking", None)
        elif kind == "default":
            known[n] = ("failed", 7)
        elif kind == "fail":
            return "failed", known
        elif kind == "map":
            known[n] = ("succeeded", [i + value for i in range(number)])
        else:
            known[n] = ("succeeded", value)
    return "succeeded", known


def _number(value: object) -> int:
    if isinstance(value, list):
        return sum(value)
    return int(value)  # type: ignore[call-overload, no-any-return]


def written(dag: list[tuple[list[int], str, int]], ledger: str) -> Workflow:
    """The same as a workflow."""
    wf = Workflow("random", register=False)
    refs: list[object] = []
    for n, (parents, kind, number) in enumerate(dag):
        name = f"s{n}"
        inputs = {"parts": [refs[p] for p in parents], "number": number}
        if kind == "map":
            base = wf.step(f"{name}_base", steps.combine, **inputs)
            items = wf.step(f"{name}_items", steps.numbers, n=number, after=[base])
            refs.append(wf.map(name, steps.add, over=items, concurrency=2, a=wf.item, b=base))
        elif kind == "when":
            base = wf.step(f"{name}_base", steps.combine, **inputs)
            refs.append(wf.step(name, steps.combine, parts=[base], number=0, when=f"steps.{name}_base > 2"))
        elif kind in ("fail", "skip", "default"):
            policy = {"fail": "fail", "skip": "skip", "default": {"default": 7}}[kind]
            refs.append(wf.step(name, steps.combine_and_fail, on_failure=policy, **inputs))
        elif kind == "flaky":
            refs.append(wf.step(name, steps.combine_flaky, ledger=ledger, **inputs))
        else:
            refs.append(wf.step(name, steps.combine, **inputs))
    return wf


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dags())
def test_random_dags_end_as_a_pure_evaluation_says(
    stack: Stack, dag: list[tuple[list[int], str, int]]
) -> None:
    """States and results equal the reference; no child started before its parents ended; moves are legal."""
    run = stack.client.start(written(dag, stack.ledger)).id
    stack.drain(run)
    state, expected = reference(dag)
    assert stack.client.get(run).state.value == state
    found = {step.name: step for step in stack.client.steps(run)}
    assert all(step.state.value in ("succeeded", "failed", "skipped", "cancelled") for step in found.values())
    if state == "succeeded":
        for n, (what, value) in expected.items():
            name = f"s{n}[]" if dag[n][1] == "map" else f"s{n}"
            told = {"blocking": "failed"}.get(what, what)
            assert found[name].state.value == told
            if what in ("succeeded", "failed"):
                assert stack.client.result(run, f"s{n}") == value
    for n, (parents, _, _) in enumerate(dag):
        child = found[f"s{n}_base" if f"s{n}_base" in found else f"s{n}"]
        for parent in parents:
            ended = found[f"s{parent}[]" if dag[parent][1] == "map" else f"s{parent}"].finished_at
            if child.started_at is not None and ended is not None and child.state.value == "succeeded":
                assert (ended - child.started_at).total_seconds() < 0.001


@pytest.mark.parametrize("source", list(StepState))
def test_only_a_running_step_takes_an_outcome(stack: Stack, source: StepState) -> None:
    """The statement follows the table of legal moves: from any other state an outcome changes nothing."""
    wf = Workflow("moves", register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf).id
    lease = str(uuid4())
    stack.rows(
        "UPDATE step SET state = %s, lease = %s WHERE run_id = %s",
        source.value, lease if source is StepState.RUNNING else None, run,
    )  # fmt: skip
    won = stack.engine.journal.complete(run, [succeeded(0, lease)]).won
    assert bool(won) is (StepState.SUCCEEDED in STEP_MOVES[source])


def test_a_cancel_during_an_expansion_stops_the_new_items_too(stack: Stack) -> None:
    """Cancel waits for the row that the growing step holds, and then sees what it has inserted."""
    wf = Workflow("growing", register=False)
    wf.map("each", steps.effect, over=[1, 2, 3], ledger=stack.ledger)
    run = stack.client.start(wf).id
    real = stack.engine.journal.add
    cancelled: list[threading.Thread] = []

    def slow(connection: object, run_id: str, rows: object, *, sent: bool) -> None:
        real(connection, run_id, rows, sent=sent)  # type: ignore[arg-type]
        thread = threading.Thread(target=stack.client.cancel, args=(run,))
        thread.start()
        cancelled.append(thread)
        eventually(lambda: stack.rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                                      "AND datname = current_database()"))  # fmt: skip

    stack.engine.journal.add = slow  # type: ignore[method-assign, assignment]
    stack.engine.run_bundle("trellis.map", run, [0])
    cancelled[0].join()
    assert stack.client.get(run).state is RunState.CANCELLED
    open_states = {step.state.value for step in stack.client.steps(run)} - {"succeeded", "cancelled"}
    assert open_states == set()


def test_a_claim_repeated_after_an_unheard_commit_finds_its_own_lease(stack: Stack) -> None:
    """The same lease again: the same steps, and no second attempt."""
    wf = Workflow("unheard", register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf).id
    journal = stack.engine.journal
    arguments = {
        "run": run,
        "idx": [0],
        "lease": str(uuid4()),
        "worker": "w",
        "commit": "on",
        **journal._limits,
    }
    first, second = journal._rows("claim", **arguments), journal._rows("claim", **arguments)
    assert [row[:6] for row in first] == [row[:6] for row in second]
    assert first[0][5] == 1
