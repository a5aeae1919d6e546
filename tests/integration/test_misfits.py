"""A deployment that does not fit open runs is told by name before anything fails, and nothing fails of it."""

from __future__ import annotations

from typing import Any

import growing
import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import DeploymentMismatch
from trellis.workflows import Workflow, misfit, registry
from trellis.workflows.states import RunState


class Deployed:
    """The actions of this process with some of them gone or changed."""

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def get(self, name: str) -> Any:
        return self.changed[name] if name in self.changed else registry.actions.get(name)

    def names(self) -> list[str]:
        return [name for name in registry.actions.names() if self.changed.get(name, name) is not None]


def flow(stack: Stack, name: str = "flow") -> Workflow:
    wf = Workflow(name, register=False)
    first = wf.step("first", steps.effect, ledger=stack.ledger, value=[1, 2])
    each = wf.map("each", steps.add, over=first, a=wf.item)
    wf.step("last", steps.total, values=each)
    wf.on_failure("undo", steps.returns, value=1)
    return wf


def check(stack: Stack, catalogue: Any, *queues: str) -> tuple[Any, ...]:
    with pytest.raises(DeploymentMismatch) as caught:
        misfit.check(stack.engine.database, catalogue, "celery", queues or None)
    return caught.value.misfits


def test_code_that_fits_is_told_so(stack: Stack) -> None:
    for name in ("flow", "flow", "other"):
        stack.client.start(flow(stack, name))
    assert misfit.check(stack.engine.database, registry.actions, "celery") == 2


def test_an_action_that_is_gone_is_named_with_its_runs(stack: Stack) -> None:
    """Only with runs that still need it, and only for the queues that are asked for."""
    runs = [stack.client.start(flow(stack)).id for _ in range(3)]
    over = stack.client.start(flow(stack)).id
    stack.client.cancel(over)
    [found] = check(stack, Deployed(add=None))
    assert (found.workflow, found.step, found.action) == ("flow", "each", "add")
    assert sorted(found.runs) == sorted(runs)
    assert "'add' is gone" in found.problem
    stack.engine.run_bundle("effect", runs[0], [0])
    [found] = check(stack, Deployed(effect=None), "celery")
    assert sorted(found.runs) == sorted(runs[1:])
    assert misfit.check(stack.engine.database, Deployed(effect=None), "celery", ["slow"]) == 1
    for run in runs:
        stack.drain(run)
    assert misfit.check(stack.engine.database, Deployed(effect=None), "celery") == 0


def test_every_open_run_is_looked_at_however_old(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that still needs the action is the oldest of many; those behind it have done that step."""
    monkeypatch.setattr(misfit, "_RUNS", 2)
    runs = [stack.client.start(flow(stack)).id for _ in range(7)]
    for run in runs[1:]:
        stack.engine.run_bundle("effect", run, [0])
    [found] = check(stack, Deployed(effect=None))
    assert (found.runs, found.more) == ((runs[0],), False)
    for run in runs:
        stack.client.pause(run)
    [found] = check(stack, Deployed(add=None))
    assert (found.step, len(found.runs), found.more) == ("each", 2, True)


def test_an_appended_step_is_told_when_a_worker_has_put_it_back(stack: Stack) -> None:
    """It stands in no definition; and only for the queue that it is on, and while the action is gone."""
    wf = Workflow("grows", register=False)
    wf.step("plan", growing.plan, parts=[{"steps": {"later": {"action": "noop"}}}])
    run = stack.client.start(wf).id
    stack.engine.run_bundle("plan", run, [0])
    gone = Deployed(noop=None)
    stack.engine.actions = gone
    stack.engine.run_bundle("noop", run, [1])
    [found] = check(stack, gone, "celery")
    assert (found.workflow, found.step, found.action, found.runs) == ("grows", "plan.later", "noop", (run,))
    assert misfit.check(stack.engine.database, gone, "celery", ["slow"]) == 1
    assert misfit.check(stack.engine.database, registry.actions, "celery") == 1


def test_inputs_that_were_renamed_are_named(stack: Stack) -> None:
    """Missing and unknown ones; also of steps that compensate."""
    stack.client.start(flow(stack))
    [found] = check(stack, Deployed(total=registry.actions.get("numbers")))
    assert "wants the input 'n' now" in found.problem
    [found] = check(stack, Deployed(total=registry.actions.get("noop")))
    assert "has no input 'values' any more; it takes none" in found.problem
    [found] = check(stack, Deployed(returns=None))
    assert (found.step, len(found.runs)) == ("undo", 1)


def test_the_error_says_what_to_do(stack: Stack) -> None:
    run = stack.client.start(flow(stack)).id
    with pytest.raises(
        DeploymentMismatch, match=rf"(?s)step 'first'.*{run}.*keep a worker with the old code"
    ):
        misfit.check(stack.engine.database, Deployed(effect=None), "celery")


def test_a_step_that_does_not_fit_is_put_back_and_not_failed(stack: Stack) -> None:
    """Its attempt does not count, and a worker that fits ends the run."""
    run = stack.client.start(flow(stack)).id
    for changed in ({"effect": None}, {"effect": registry.actions.get("noop")}):
        stack.engine.actions = Deployed(**changed)
        stack.engine.run_bundle("effect", run, [0])
        [(state, attempt, failures, waits_for, wait)] = stack.rows(
            "SELECT state, attempt, failures, waits_for, wait FROM step WHERE run_id = %s AND idx = 0", run
        )
        assert (state, attempt, failures, waits_for) == ("parked", 0, 0, "action:effect")
        assert wait["misfit"]
        assert stack.client.get(run).state is RunState.RUNNING
        stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s AND idx = 0", run)
        assert stack.engine.journal.take_due(10)
    stack.engine.actions = registry.actions
    stack.drain(run)
    assert stack.client.result(run, "last") == 5


def test_an_input_of_a_wrong_type_still_fails_the_step(stack: Stack) -> None:
    """Putting it back would wait for ever: the names fit."""
    wf = Workflow("typed", register=False)
    odd = wf.step("odd", steps.returns, value="x")
    wf.step("sum", steps.add, a=odd)
    run = stack.client.start(wf).id
    stack.drain(run)
    assert stack.client.get(run).state is RunState.FAILED


def test_a_worker_says_at_its_start_what_does_not_fit(stack: Stack) -> None:
    """Before its first step; only for the queues that it consumes."""
    wf = Workflow("flow", register=False, catalogue=Deployed(shop_pack=registry.actions.get("noop")))
    wf.step("pack", "shop_pack")
    wf.step("far", "shop_pack", queue="far")
    prepared = wf.spec
    stack.rows("INSERT INTO definition (digest, name, spec) VALUES (%s, 'flow', %s)",
               prepared.digest(), prepared.canonical().decode())  # fmt: skip
    stack.rows(
        "INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing) "
        "VALUES ('01a1f80c-cf3a-7686-8674-c566556c6650', 'flow', %s, '', 'pending', '{}', 2, 2)",
        prepared.digest(),
    )
    for idx, queue in enumerate(("celery", "far")):
        stack.rows(
            "INSERT INTO step (run_id, idx, name, action, queue, priority, state, missing, dependents) "
            "VALUES ('01a1f80c-cf3a-7686-8674-c566556c6650', %s, %s, 'shop_pack', %s, 5, 'ready', 0, '{}')",
            idx, ("pack", "far")[idx], queue,
        )  # fmt: skip
    worker = stack.worker()
    text = eventually(lambda: "deployment.mismatch" in worker.text() and worker.text())
    assert "shop_pack" in text
    assert "step 'pack'" in text
    assert "step 'far'" not in text
    assert "01a1f80c-cf3a-7686-8674-c566556c6650" in text
