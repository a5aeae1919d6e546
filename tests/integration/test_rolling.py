"""Rolling restarts: workers are stopped and replaced under load, and nobody notices but the operator.

The lease is a minute here: whatever would have to wait for one would not end within the test.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
import steps
from stack import Process, Stack, eventually

from trellis.workflows import Workflow
from trellis.workflows.states import RunState

PATIENT = {"TRELLIS_LEASE_SECONDS": "60", "TRELLIS_HEARTBEAT_SECONDS": "0.5", "TRELLIS_SHUTDOWN_SECONDS": "1"}


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def done(stack: Stack) -> Counter[tuple[str, str]]:
    return Counter((line[0], line[1]) for line in stack.lines() if line[-1] == "done")


def begun(stack: Stack, name: str) -> int:
    return sum(1 for line in stack.lines() if line[1] == name and line[-1] == "begun")


def stopped(worker: Process) -> None:
    """SIGTERM, as an orchestrator sends it, and the end of the process."""
    worker.popen.terminate()
    eventually(lambda: worker.popen.poll() is not None, 60, "the worker ends")
    assert worker.popen.returncode == 0, worker.text()[-3000:]


def load(stack: Stack, name: str, gate: Path) -> str:
    """Short steps, steps that take their time, one that outlives any shutdown, and steps behind all of them."""
    wf = Workflow(name, register=False)
    short = wf.map(
        "short", steps.works, over=list(range(60)), ledger=stack.ledger, seconds=0.002, value=wf.item
    )
    slow = wf.map("slow", steps.works, over=list(range(30)), ledger=stack.ledger, seconds=0.3, value=wf.item)
    held = wf.step("held", steps.wait_for, ledger=stack.ledger, file=str(gate))
    later = wf.map("later", steps.works, over=slow, ledger=stack.ledger, seconds=0.02, value=wf.item)
    wf.step("all", steps.combine, parts=[short, later], number=0, after=[held])
    return stack.client.start(wf).id


def test_workers_roll_under_load_and_nothing_is_lost_or_done_twice(stack: Stack, gate: Path) -> None:
    """Each worker is replaced, twice round: all runs succeed, each step finished once, no crash, no waiting lease."""
    workers = [stack.worker(f"w{n}", **PATIENT) for n in range(2)]
    stack.beat()
    runs = [load(stack, f"load{n}", gate) for n in range(3)]
    eventually(lambda: begun(stack, "held") >= 1)
    for turn in range(4):
        replacement = stack.worker(f"r{turn}", **PATIENT)
        stopped(workers.pop(0))
        workers.append(replacement)
        runs.append(load(stack, f"more{turn}", gate))
    gate.touch()
    for run in runs:
        assert stack.client.wait(run, timeout=90).state is RunState.SUCCEEDED
    counts = done(stack)
    assert set(counts.values()) == {1}
    assert len(counts) == len(runs) * (60 + 30 + 30 + 1)
    assert stack.rows("SELECT name, attempt, failures FROM step WHERE attempt <> 1 OR failures <> 0") == []
    assert stack.rows("SELECT kind, detail FROM event WHERE kind LIKE 'step.%%'") == []
    logs = "".join(process.text() for process in stack.processes)
    assert "leases.expired" not in logs
    assert "step.handed_back" in logs


def test_a_worker_that_drains_begins_nothing_more(stack: Stack, gate: Path) -> None:
    """One slot, one body at the gate, fifty messages behind it: they are there for the next worker, unclaimed."""
    worker = stack.worker("only", concurrency=1, **{**PATIENT, "TRELLIS_SHUTDOWN_SECONDS": "30"})
    wf = Workflow("queue", register=False)
    held = wf.step("held", steps.wait_for, ledger=stack.ledger, file=str(gate))
    wf.map("behind", steps.works, over=list(range(5)), ledger=stack.ledger, seconds=0.0, after=[held])
    wf.map("each", steps.works, over=list(range(50)), ledger=stack.ledger, seconds=0.05, priority=0)
    run = stack.client.start(wf).id
    eventually(lambda: begun(stack, "held"))
    worker.popen.terminate()
    eventually(lambda: "Warm shutdown" in worker.text())
    before = stack.lines()
    gate.touch()
    eventually(lambda: worker.popen.poll() is not None, 60, "the worker ends")
    assert stack.lines()[len(before) :] == [
        line for line in stack.lines() if line[1:2] == ["held"] and line[-1] == "done"
    ]
    states = dict(stack.rows("SELECT state, count(*) FROM step WHERE name <> 'held' GROUP BY 1"))
    assert set(states) <= {"ready", "waiting", "succeeded"}
    assert stack.rows("SELECT 1 FROM step WHERE state = 'ready' AND attempt > 0") == []
    stack.worker("next", **PATIENT)
    stack.beat()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert set(done(stack).values()) == {1}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_body_that_outlives_the_shutdown_goes_on_elsewhere_at_once(
    stack: Stack, gate: Path, pool: str
) -> None:
    """It is stopped in good order and its attempt does not count; the next worker has it without any lease's end."""
    first = stack.worker("first", pool=pool, **PATIENT)
    wf = Workflow("outlives", register=False)
    wf.step("held", steps.wait_for, ledger=stack.ledger, file=str(gate))
    run = stack.client.start(wf).id
    eventually(lambda: begun(stack, "held") == 1)
    stopped(first)
    assert stack.rows("SELECT state, attempt, failures, worker IS NOT NULL FROM step") == [
        ("ready", 0, 0, True)
    ]
    stack.worker("second", **PATIENT)
    eventually(lambda: begun(stack, "held") == 2)
    gate.touch()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert stack.rows("SELECT attempt, failures FROM step") == [(1, 0)]


def test_a_body_that_does_not_listen_goes_down_with_its_process_and_goes_on_elsewhere(stack: Stack) -> None:
    """It swallows every exception: the last resort ends its process, which still gives the step back."""
    first = stack.worker("first", **PATIENT)
    wf = Workflow("deaf", register=False)
    wf.step("spins", steps.spins, ledger=stack.ledger, timeout=600)
    stack.client.start(wf)
    eventually(lambda: stack.effects()["spins"] == 1)
    first.popen.terminate()
    eventually(lambda: first.popen.poll() is not None, 60, "the worker ends")
    eventually(lambda: stack.rows("SELECT state, attempt FROM step") == [("ready", 0)])


def test_every_process_of_a_worker_that_is_told_to_end_gives_its_step_back(stack: Stack, gate: Path) -> None:
    """As systemd does it: SIGTERM to the children as well."""
    first = stack.worker("first", **PATIENT)
    wf = Workflow("group", register=False)
    wf.step("held", steps.wait_for, ledger=stack.ledger, file=str(gate))
    run = stack.client.start(wf).id
    eventually(lambda: begun(stack, "held") == 1)
    first.send(signal.SIGTERM)
    eventually(lambda: first.popen.poll() is not None, 60, "the worker ends")
    assert stack.rows("SELECT state, attempt FROM step") == [("ready", 0)]
    gate.touch()
    stack.worker("second", **PATIENT)
    stack.beat()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
