"""Of what is paused nothing begins, nothing is lost, and it costs the tick nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import DefinitionError, NotFound, StateError
from trellis.workflows import AsyncClient, Client, Retry, Workflow
from trellis.workflows.journal import Ahead
from trellis.workflows.records import Outcome
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState, StepState


def row(stack: Stack, width: int = 3, name: str = "row", queue: str | None = None) -> Workflow:
    """Steps beside each other and one behind them."""
    wf = Workflow(name, register=False)
    each = [wf.step(f"s{n}", steps.effect, ledger=stack.ledger, value=n, queue=queue) for n in range(width)]
    wf.step("sum", steps.total, values=each, queue=queue)
    return wf


def states(stack: Stack, run: str) -> list[str]:
    return [state for (state,) in stack.rows("SELECT state FROM step WHERE run_id = %s ORDER BY idx", run)]


def turn(stack: Stack, run: str) -> None:
    """Offer every ready step to a worker, once."""
    found = stack.rows("SELECT action, idx FROM step WHERE run_id = %s AND state = 'ready' ORDER BY idx", run)
    for action, idx in found:
        stack.engine.run_bundle(action, run, [idx])


def test_nothing_of_a_paused_run_begins_and_it_goes_on_where_it_stood(stack: Stack) -> None:
    run = stack.client.start(row(stack)).id
    stack.engine.run_bundle("effect", run, [0])
    assert stack.client.pause(run) is True
    assert stack.client.pause(run) is False
    assert stack.client.get(run).state is RunState.PAUSED
    stack.engine.run_bundle("effect", run, [0, 1, 2])  # its messages are still on their way
    assert states(stack, run) == ["succeeded", "parked", "parked", "waiting"]
    assert stack.client.resume(run) is True
    assert stack.client.resume(run) is False
    assert stack.client.get(run).state is RunState.RUNNING
    stack.drain(run)
    assert stack.client.result(run, "sum") == 3
    assert stack.effects() == {"s0": 1, "s1": 1, "s2": 1}
    kinds = [event.kind for event in stack.client.events(run)]
    assert kinds.index("run.paused") < kinds.index("run.resumed")


def test_a_pending_run_is_pending_again(stack: Stack) -> None:
    run = stack.client.start(row(stack)).id
    stack.client.pause(run)
    stack.client.resume(run)
    assert stack.client.get(run).state is RunState.PENDING
    stack.drain(run)
    assert stack.client.get(run).started_at is not None


def test_a_body_that_runs_goes_on_and_its_result_counts(stack: Stack, tmp_path: Path) -> None:
    """What it frees is not begun, not even by the worker that freed it, and is parked by the tick that meets it."""
    file = tmp_path / "go"
    wf = Workflow("body", register=False)
    first = wf.step("first", steps.wait_for, ledger=stack.ledger, file=str(file))
    wf.step("second", steps.effect, ledger=stack.ledger, after=[first])
    stack.worker()
    stack.rows("INSERT INTO action_stat (action, runs, mean_ms) VALUES ('effect', 100, 0.1)")
    run = stack.client.start(wf).id
    eventually(lambda: stack.lines())
    stack.client.pause(run)
    file.touch()
    eventually(lambda: states(stack, run)[0] == "succeeded")
    assert states(stack, run)[1] == "ready"
    stack.rows("UPDATE step SET sent = false WHERE run_id = %s AND state = 'ready'", run)  # as after a retry
    tick(stack.engine)
    assert states(stack, run) == ["succeeded", "parked"]
    assert "second" not in stack.effects()
    stack.client.resume(run)
    assert stack.client.wait(run, 30).state is RunState.SUCCEEDED


def test_a_paused_run_costs_no_tick_anything(stack: Stack) -> None:
    """None of its steps stands in an index that a tick reads."""
    run = stack.client.start(row(stack, 200)).id
    stack.client.pause(run)
    assert stack.engine.journal.ready_queues() == []
    assert all(count == 0 for count in tick(stack.engine).values())
    assert stack.rows("SELECT 1 FROM step WHERE state = 'parked' AND due_at < 'infinity'") == []


def test_what_a_step_had_noted_and_its_time_outlive_the_pause(stack: Stack) -> None:
    """A retry that is due later is due later still; a step that was woken from waiting knows by what."""
    wf = Workflow("notes", register=False)
    wf.step("later", steps.fails, retry=Retry(attempts=2, base=3600, jitter=0))
    wf.wait_for("signal", "go")
    run = stack.client.start(wf).id
    turn(stack, run)
    before = stack.rows("SELECT due_at, waits_for, wait FROM step WHERE run_id = %s AND name = 'later'", run)
    stack.client.signal(run, "go", 7)
    woken = stack.rows("SELECT wait FROM step WHERE run_id = %s AND name = 'signal'", run)
    stack.client.pause(run)
    assert set(states(stack, run)) == {"parked"}
    stack.client.resume(run)
    assert (
        stack.rows("SELECT due_at, waits_for, wait FROM step WHERE run_id = %s AND name = 'later'", run)
        == before
    )
    assert stack.rows("SELECT wait FROM step WHERE run_id = %s AND name = 'signal'", run) == woken
    stack.engine.run_bundle("trellis.wait_for", run, [1])
    assert stack.client.result(run, "signal") == 7


def test_a_signal_to_a_paused_run_is_kept(stack: Stack) -> None:
    wf = Workflow("signals", register=False)
    wf.wait_for("signal", "go")
    run = stack.client.start(wf).id
    turn(stack, run)
    stack.client.pause(run)
    stack.client.signal(run, "go", 7)
    turn(stack, run)
    assert stack.client.get(run).state is RunState.PAUSED
    stack.client.resume(run)
    stack.drain(run)
    assert stack.client.result(run, "signal") == 7


def test_a_paused_run_can_be_cancelled_and_retried(stack: Stack) -> None:
    run = stack.client.start(row(stack)).id
    stack.client.pause(run)
    assert stack.client.cancel(run)
    for verb in (stack.client.pause, stack.client.resume):
        with pytest.raises(StateError, match="is over.*was cancelled"):
            verb(run)
    stack.client.retry(run)
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_pauses_and_resumes_against_workers_lose_nothing(stack: Stack) -> None:
    """Again and again, while two workers run it: every step runs once, the run ends."""
    stack.worker(concurrency=2)
    stack.beat()
    runs = [stack.client.start(row(stack, 60)).id for _ in range(3)]
    clients = [Client(stack.settings) for _ in range(2)]

    def shake(client: Client) -> None:
        for _ in range(15):
            for run in runs:
                for verb in (client.pause, client.resume):
                    with suppress(StateError):
                        verb(run)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(shake, clients))
    for run in runs:
        with suppress(StateError):  # it may be over by now
            stack.client.resume(run)
        assert stack.client.wait(run, 60).state is RunState.SUCCEEDED
    for client in clients:
        client.close()
    assert set(stack.effects().values()) == {3}


def test_a_paused_workflow_pauses_its_open_runs_and_new_ones(stack: Stack) -> None:
    old = stack.client.start(row(stack)).id
    other = stack.client.start(row(stack, name="other")).id
    assert stack.client.pause(workflow="row") is True
    assert stack.client.pause(workflow="row") is False
    new = stack.client.start(row(stack)).id
    assert [stack.client.get(run).state.value for run in (old, new, other)] == ["paused", "paused", "pending"]
    assert set(states(stack, new)) == {"parked", "waiting"}
    assert [(each.kind, each.name) for each in stack.client.pauses()] == [("workflow", "row")]
    with pytest.raises(StateError, match="workflow 'row'.*resume the workflow"):
        stack.client.resume(new)
    assert stack.client.resume(workflow="row") is True
    assert stack.client.resume(workflow="row") is False
    for run in (old, new, other):
        stack.drain(run)
        assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_run_that_is_started_while_its_workflow_is_paused_is_caught_by_the_tick(stack: Stack) -> None:
    """Its transaction began before the pause, and is committed after it."""
    with stack.connect() as connection, connection.transaction():
        run = stack.client.start(row(stack), connection=connection).id
        paused = threading.Thread(target=stack.client.pause, kwargs={"workflow": "row"})
        paused.start()
        paused.join()
    assert stack.client.get(run).state is RunState.PENDING
    tick(stack.engine)
    assert stack.client.get(run).state is RunState.PAUSED
    stack.client.resume(workflow="row")
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_run_that_fails_while_its_workflow_is_paused_is_retried_as_paused(stack: Stack) -> None:
    run = stack.client.start(row(stack)).id
    stack.client.cancel(run)
    stack.client.pause(workflow="row")
    assert stack.client.retry(run)
    assert stack.client.get(run).state is RunState.PAUSED
    stack.client.resume(workflow="row")
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_nothing_is_claimed_from_a_paused_queue_nor_announced(stack: Stack) -> None:
    """Not by a message on its way, not by run-ahead, and not by the most urgent step's right."""
    stack.rows("INSERT INTO action_stat (action, runs, mean_ms) VALUES ('effect', 100, 0.1)")
    stack.engine.durations.refresh()
    wf = Workflow("lanes", register=False)
    first = wf.step("first", steps.effect, ledger=stack.ledger, queue="quick")
    wf.step("second", steps.effect, ledger=stack.ledger, queue="slow", after=[first])
    wf.step("third", steps.effect, ledger=stack.ledger, queue="slow")
    wf.step("long", steps.effect, ledger=stack.ledger, queue="slow", expect=5)
    run = stack.client.start(wf).id
    assert stack.client.pause(queue="slow") is True
    assert stack.client.pause(queue="slow") is False
    stack.engine.run_bundle("effect", run, [0])
    stack.engine.run_bundle("effect", run, [1, 2, 3])
    stack.engine.run_bundle("effect", run, [3], "slow")
    assert stack.effects() == {"first": 1}
    assert stack.engine.journal.ready_queues() == []
    assert stack.client.resume(queue="slow") is True
    assert stack.client.resume(queue="slow") is False
    assert stack.engine.journal.ready_queues() == ["slow"]
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_run_ahead_stops_where_the_queue_is_paused(stack: Stack) -> None:
    stack.rows("INSERT INTO action_stat (action, runs, mean_ms) VALUES ('effect', 100, 0.1)")
    wf = Workflow("ahead", register=False)
    first = wf.step("first", steps.effect, ledger=stack.ledger)
    wf.step("second", steps.effect, ledger=stack.ledger, after=[first])
    run = stack.client.start(wf).id
    journal = stack.engine.journal
    [claimed] = journal.claim(run, [0], "w")[0]
    stack.client.pause(queue="celery")
    outcome = Outcome(0, claimed.lease, StepState.SUCCEEDED, b"1", ended=time.monotonic())
    done = journal.complete(run, [outcome], ahead=Ahead("celery", '{"effect": 0.1}', 50.0, 10))
    assert (done.mine, [step.name for step in done.free]) == ([], ["second"])


def test_workers_and_beat_go_on_when_a_queue_is_resumed(stack: Stack) -> None:
    stack.worker()
    stack.beat()
    stack.client.pause(queue="celery")
    run = stack.client.start(row(stack, 20)).id
    eventually(lambda: stack.rows("SELECT 1 FROM heartbeat WHERE name = 'tick'"))
    assert not stack.lines()
    stack.client.resume(queue="celery")
    assert stack.client.wait(run, 30).state is RunState.SUCCEEDED


def test_what_is_asked_wrongly_is_refused(stack: Stack) -> None:
    for verb in (stack.client.pause, stack.client.resume):
        with pytest.raises(DefinitionError, match="one of the three"):
            verb()
        with pytest.raises(DefinitionError, match="one of the three"):
            verb("x", queue="y")
        with pytest.raises(NotFound):
            verb("01a1f80c-cf3a-7686-8674-c566556c6650")


def test_the_client_for_asyncio_pauses_as_well(stack: Stack) -> None:
    run = stack.client.start(row(stack)).id

    async def verbs() -> None:
        async with AsyncClient(stack.settings) as client:
            assert await client.pause(run)
            assert await client.pause(queue="slow")
            assert [each.name for each in await client.pauses()] == ["slow"]
            assert await client.resume(queue="slow")
            assert await client.resume(run)

    asyncio.run(verbs())
