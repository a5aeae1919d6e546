"""Faults with real processes: whatever is killed, every run ends right and no finished step is finished twice.

Effects are counted by a ledger outside the system under test: a file to which each body appends a line.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import steps
from stack import Stack, eventually

from trellis.workflows import Client, Retry, Workflow
from trellis.workflows.states import RunState

WIDE = 40


def fan(stack: Stack, name: str, gate: Path) -> Workflow:
    """Some effects, a step that waits at a gate, then more effects."""
    wf = Workflow(name, register=False)
    before = wf.map("before", steps.effect, over=list(range(WIDE)), ledger=stack.ledger, value=wf.item)
    held = wf.step("held", steps.wait_for, ledger=stack.ledger, file=str(gate), after=[before])
    after = wf.map("after", steps.effect, over=list(range(WIDE)), ledger=stack.ledger, value=wf.item)
    wf.step("sum", steps.total, values=after, after=[held])
    return wf


def chain(stack: Stack, name: str, gate: Path, length: int = 30) -> Workflow:
    """Effects one after the other, with a gate in the middle."""
    wf = Workflow(name, register=False)
    last = wf.step("first", steps.effect, ledger=stack.ledger)
    for number in range(length):
        last = wf.step(f"a{number}", steps.effect, ledger=stack.ledger, after=[last])
    last = wf.step("held", steps.wait_for, ledger=stack.ledger, file=str(gate), after=[last])
    for number in range(length):
        last = wf.step(f"b{number}", steps.effect, ledger=stack.ledger, after=[last])
    return wf


def begun(stack: Stack, step: str = "held", times: int = 1) -> Callable[[], bool]:
    return lambda: sum(line[1] == step and line[-1] == "begun" for line in stack.lines()) >= times


def pid_of(stack: Stack, step: str = "held") -> int:
    return next(int(line[3]) for line in reversed(stack.lines()) if line[1] == step)


def finished_once(stack: Stack, run: str, *, held: int = 1) -> None:
    """The run succeeded, and each step left its effect exactly once (`held`: times the gate was passed)."""
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    effects = stack.effects()
    expected = {step.name: 1 for step in stack.client.steps(run) if step.action in ("effect", "wait_for")}
    assert effects == {**expected, "held": held}


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def test_a_killed_pool_child_costs_only_its_own_step_another_attempt(stack: Stack, gate: Path) -> None:
    """SIGKILL in the middle of a body: the lease runs out, the step runs again, nothing else does."""
    stack.worker()
    stack.beat()
    run = stack.client.start(chain(stack, "child", gate)).id
    eventually(begun(stack))
    os.kill(pid_of(stack), signal.SIGKILL)
    eventually(begun(stack, times=2))
    gate.touch()
    finished_once(stack, run)
    [held] = [step for step in stack.client.steps(run) if step.name == "held"]
    assert (held.attempt, held.failures) == (2, 0)


def test_a_killed_worker_is_replaced_by_another(stack: Stack, gate: Path) -> None:
    """SIGKILL of the whole worker: a second one goes on where the first stood."""
    first = stack.worker("first")
    stack.beat()
    run = stack.client.start(chain(stack, "worker", gate)).id
    eventually(begun(stack))
    first.kill()
    stack.worker("second")
    eventually(begun(stack, times=2))
    gate.touch()
    finished_once(stack, run)


def test_a_paused_worker_that_wakes_up_late_changes_nothing(stack: Stack, gate: Path) -> None:
    """SIGSTOP past the lease, another worker finishes the step, then SIGCONT: the late result is dropped."""
    paused = stack.worker("paused", concurrency=1)
    stack.beat()
    wf = Workflow("pause", register=False)
    held = wf.step("held", steps.wait_for, ledger=stack.ledger, file=str(gate))
    wf.step("after", steps.effect, ledger=stack.ledger, after=[held])
    run = stack.client.start(wf).id
    eventually(begun(stack))
    late = pid_of(stack)
    paused.send(signal.SIGSTOP)
    stack.worker("other", concurrency=1)
    eventually(begun(stack, times=2))
    gate.touch()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    before = stack.rows("SELECT name, worker, attempt, finished_at, result FROM step WHERE run_id = %s", run)
    paused.send(signal.SIGCONT)
    # The woken body sees the open gate, ends, and reports; then its process takes the next message.
    eventually(
        lambda: (
            sum(int(line[3]) == late and line[-1] == "done" for line in stack.lines())
            or "step.lost" in paused.text()
            or "step.failed" in paused.text()
        )
    )
    probe = stack.client.start(_probe(stack)).id
    stack.client.wait(probe, timeout=30)
    assert (
        stack.rows("SELECT name, worker, attempt, finished_at, result FROM step WHERE run_id = %s", run)
        == before
    )
    assert stack.effects()["after"] == 1


def _probe(stack: Stack) -> Workflow:
    wf = Workflow("probe", register=False)
    wf.step("probe", steps.noop)
    return wf


def test_redis_flushed_in_the_middle_of_a_run(stack: Stack, gate: Path) -> None:
    """FLUSHALL loses every message; the tick finds the queue dry and announces the steps again."""
    stack.worker()
    stack.beat()
    runs = [stack.client.start(chain(stack, f"flush{n}", gate, 10)).id for n in range(2)]
    waiting = [stack.client.start(_later(stack, n)).id for n in range(5)]
    eventually(begun(stack, times=2))
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.flushall()
    gate.touch()
    for run in [*runs, *waiting]:
        assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert set(stack.effects().values()) <= {1, 2, 5}, stack.effects()
    assert stack.effects()["later"] == 5


def _later(stack: Stack, number: int) -> Workflow:
    wf = Workflow(f"later{number}", register=False)
    wf.step("later", steps.effect, ledger=stack.ledger)
    return wf


def test_redis_restarted_in_the_middle_of_a_run(stack: Stack, gate: Path) -> None:
    """The broker crashes and comes back: workers reconnect, the run goes on."""
    stack.worker()
    stack.beat()
    run = stack.client.start(chain(stack, "redis", gate)).id
    eventually(begun(stack))
    stack.servers.redis.restart(mode="kill")
    gate.touch()
    finished_once(stack, run)


def test_postgres_restarted_in_the_middle_of_a_run(stack: Stack, gate: Path) -> None:
    """The journal crashes and comes back: workers wait for it and report then.

    It is away for less than two leases; after that the step would rightly be somebody else's.
    """
    stack.worker(TRELLIS_LEASE_SECONDS="10")
    stack.beat()
    run = stack.client.start(chain(stack, "postgres", gate)).id
    eventually(begun(stack))
    stack.servers.postgres.restart(mode="immediate")
    gate.touch()
    finished_once(stack, run)


def test_a_message_delivered_three_times_is_work_done_once(stack: Stack) -> None:
    """Every message of the run is doubled and doubled again; the claims find nothing left."""
    wf = Workflow("thrice", register=False)
    wf.map("each", steps.effect, over=list(range(WIDE)), ledger=stack.ledger, value=wf.item)
    wf.step("single", steps.effect, ledger=stack.ledger)
    run = stack.client.start(wf).id
    with redis.Redis.from_url(stack.broker_url) as broker:
        for key in broker.keys("celery*"):
            messages = broker.lrange(key, 0, -1)
            broker.lpush(key, *messages, *messages)
    stack.worker()
    stack.beat()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert set(stack.effects().values()) == {1}
    assert len(stack.effects()) == WIDE + 1


def test_without_beat_retries_wait_and_with_it_they_go_on(stack: Stack) -> None:
    """Beat down: what needs no timer goes on; beat up: the rest follows."""
    stack.worker()
    wf = Workflow("beat", register=False)
    wf.step("retried", steps.fails_until, ledger=stack.ledger, attempt=2)
    wf.step("plain", steps.effect, ledger=stack.ledger)
    run = stack.client.start(wf).id
    eventually(
        lambda: stack.rows(
            "SELECT 1 FROM step WHERE run_id = %s AND name = 'retried' AND state = 'ready' AND attempt = 1",
            run,
        )
    )
    eventually(lambda: stack.effects()["plain"] == 1)
    assert stack.effects()["retried"] == 1
    stack.beat()
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
    assert stack.effects() == {"retried": 2, "plain": 1}


def test_a_step_that_kills_its_worker_ends_as_a_dead_letter(stack: Stack) -> None:
    """Crashes are counted at the claim: after TRELLIS_MAX_CRASHES more the step is given up, and says why."""
    stack.worker(TRELLIS_MAX_CRASHES="1")
    stack.beat()
    wf = Workflow("poison", register=False)
    wf.step("dies", steps.dies, ledger=stack.ledger, times=99)
    wf.step("good", steps.effect, ledger=stack.ledger)
    run = stack.client.wait(stack.client.start(wf), timeout=60)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert (run.error["step"], run.error["type"]) == ("dies", "WorkerLost")
    assert stack.effects()["dies"] == 2


def test_a_step_that_crashes_once_needs_no_retry_policy(stack: Stack) -> None:
    """A vanished worker is not the step's fault: with no retries of its own it still runs again."""
    stack.worker()
    stack.beat()
    wf = Workflow("crash", register=False)
    wf.step("dies", steps.dies, ledger=stack.ledger, times=1, timeout=0.9)
    run = stack.client.start(wf)
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert stack.client.result(run, "dies") == 2


@pytest.mark.parametrize("body", ["sleeps", "spins", "stuck_in_c"])
def test_a_stuck_body_is_stopped_and_its_slot_is_free_again(stack: Stack, body: str) -> None:
    """Softly where the body listens, else by killing its process; the only slot then takes the next step.

    Only a C call that holds the interpreter dies without a word, like in a crash: it has as many tries as those.
    """
    stack.worker(concurrency=1, TRELLIS_MAX_CRASHES="0")
    stack.beat()
    wf = Workflow("stuck", register=False)
    wf.step("stuck", body, ledger=stack.ledger)
    run = stack.client.wait(stack.client.start(wf), timeout=60)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert (run.error["type"], run.error["message"]) == (
        "StepTimeout",
        "the step ran longer than its timeout of 1 s",
    )
    assert stack.client.wait(stack.client.start(_probe(stack)), timeout=30).state is RunState.SUCCEEDED


def test_cancel_stops_a_running_body(stack: Stack, gate: Path) -> None:
    """The body hears of it at its heartbeat; the run is over at once, and its result changes nothing."""
    worker = stack.worker()
    run = stack.client.start(chain(stack, "cancelled", gate, 3)).id
    eventually(begun(stack))
    stack.client.cancel(run)
    assert stack.client.get(run).state is RunState.CANCELLED
    eventually(lambda: "step.lost" in worker.text(), what="the body is stopped")
    assert stack.effects()["held"] == 0
    assert stack.client.wait(stack.client.start(_probe(stack)), timeout=30).state is RunState.SUCCEEDED


def test_cancel_while_retrying(stack: Stack) -> None:
    """A step that waits for its next attempt never has it."""
    stack.worker()
    stack.beat()
    wf = Workflow("backing_off", register=False)
    wf.step("retried", steps.fails_until, ledger=stack.ledger, attempt=3, retry=Retry(3, base=1.0, jitter=0))
    run = stack.client.start(wf).id
    eventually(lambda: stack.rows("SELECT 1 FROM step WHERE run_id = %s AND failures = 1", run))
    stack.client.cancel(run)
    [(state,)] = stack.rows("SELECT state FROM step WHERE run_id = %s", run)
    assert (state, stack.effects()) == ("cancelled", {"retried": 1})


def test_a_rolled_back_transaction_never_started_a_run_and_a_committed_one_did(stack: Stack) -> None:
    """`connection=`: the run lives and dies with the caller's transaction."""
    stack.worker()
    stack.beat()
    with stack.connect() as connection:
        with connection.transaction(force_rollback=True):
            lost = stack.client.start(_later(stack, 1), connection=connection)
        with connection.transaction():
            kept = stack.client.start(_later(stack, 2), connection=connection)
    assert stack.client.wait(kept, timeout=10).state is RunState.SUCCEEDED
    assert [run.id for run in stack.client.list()] == [kept.id] != [lost.id]


def test_a_client_without_a_broker_starts_runs_all_the_same(stack: Stack) -> None:
    """What was accepted is in Postgres; the tick announces it."""
    stack.worker()
    stack.beat()
    with Client(stack.settings.model_copy(update={"broker_url": None})) as client:
        run = client.start(_later(stack, 3))
        assert client.wait(run, timeout=10).state is RunState.SUCCEEDED


def test_a_shutdown_is_bounded_and_the_step_runs_again_elsewhere(stack: Stack, gate: Path) -> None:
    """SIGTERM: the worker waits for the running body no longer than its grace, then another one takes over."""
    first = stack.worker("first", TRELLIS_SHUTDOWN_SECONDS="0.5")
    stack.beat()
    run = stack.client.start(chain(stack, "shutdown", gate, 3)).id
    eventually(begun(stack))
    first.popen.terminate()
    eventually(lambda: first.popen.poll() is not None, seconds=15, what="the worker ends")
    stack.worker("second")
    eventually(begun(stack, times=2))
    gate.touch()
    finished_once(stack, run)
