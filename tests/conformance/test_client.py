"""The client's methods answer and refuse alike on the engine and in-process."""

from __future__ import annotations

import pytest
import steps
from sides import Side

from trellis.tasks.errors import (
    DefinitionError,
    NotFinished,
    NotFound,
    ParameterError,
    RunCancelled,
    ValueTooLarge,
    WaitTimeout,
)
from trellis.workflows import Retry, RunState, StepState, Workflow

NOWHERE = "01a1f80c-cf3a-7686-8674-c566556c6650"


def one(name: str = "one") -> Workflow:
    """A workflow of one step."""
    wf = Workflow(name, params={"n": int}, register=False)
    wf.step("sum", steps.add, a=wf.params.n)
    return wf


def stuck(side: Side, wf: Workflow) -> Workflow:
    """One that fails first and waits ten minutes for its next attempt."""
    first = wf.step(
        "first", steps.fails_until, ledger=side.ledger, attempt=2, retry=Retry(2, base=600, max_delay=600)
    )
    wf.step("second", steps.effect, ledger=side.ledger, after=[first])
    return wf


def test_start_answers_with_the_run_as_it_was_accepted(side: Side) -> None:
    """Before any of it has begun."""
    run = side.client.start(one(), {"n": 1}, correlation_id="order-7")
    assert (run.workflow, run.state, run.key, run.params, run.correlation_id, run.steps) == (
        "one", RunState.PENDING, None, {"n": 1}, "order-7", 1,
    )  # fmt: skip
    assert (run.started_at, run.finished_at, run.error, run.finished) == (None, None, None, False)
    found = side.client.wait(run.id, timeout=60)
    assert (found.id, found.state, found.definition) == (run.id, RunState.SUCCEEDED, one().digest())
    assert found.created_at <= found.started_at <= found.finished_at  # type: ignore[operator]


def test_a_key_gives_the_same_run_again(side: Side, wf: Workflow) -> None:
    """Whatever the parameters; another workflow has keys of its own."""
    first = side.client.start(one("keyed"), {"n": 1}, key="k")
    again = side.client.start(one("keyed"), {"n": 2}, key="k")
    other = side.client.start(one("other"), {"n": 3}, key="k")
    assert (again.id, again.params, again.key) == (first.id, {"n": 1}, "k")
    assert other.id != first.id
    side.client.wait(first, timeout=60)
    assert side.client.result(again) == {"sum": 2}


def test_submit_runs_one_action(side: Side) -> None:
    """Its step has the last part of the action's name."""
    run = side.client.submit(steps.add, {"a": 1, "b": 2})
    side.client.wait(run, timeout=60)
    assert (run.workflow, side.client.result(run)) == ("add", {"add": 3})
    with pytest.raises(DefinitionError, match="input 'c'|'c'"):
        side.client.submit("add", {"a": 1, "c": 2})


def test_a_cancelled_run_takes_nothing_more(side: Side, wf: Workflow) -> None:
    """Every open step is cancelled, a second cancel changes nothing, and nothing of it runs later."""
    run = side.client.start(stuck(side, wf))
    side.eventually(lambda: side.effects()["first"] == 1 and side.states(run)["first"] == "ready")
    assert side.client.cancel(run) is True
    assert side.client.cancel(run.id) is False
    found = side.client.wait(run, timeout=60)
    assert (found.state, found.error) == (RunState.CANCELLED, None)
    assert side.states(run) == {"first": "cancelled", "second": "cancelled"}
    for step in (None, "first", "second"):
        with pytest.raises(RunCancelled, match=f"run {run.id} was cancelled"):
            side.client.result(run, step)
    assert [event.kind for event in side.client.events(run)] == [
        "run.created", "run.started", "step.started", "step.retry", "run.cancelled", "step.cancelled", "step.cancelled",
    ]  # fmt: skip
    assert side.effects() == {"first": 1}


def test_a_finished_run_cannot_be_cancelled(side: Side) -> None:
    """It is over already."""
    run = side.finish(one(), {"n": 1})
    assert side.client.cancel(run) is False
    assert side.client.get(run).state is RunState.SUCCEEDED


def test_a_wait_that_times_out_says_that_the_run_goes_on(side: Side, wf: Workflow) -> None:
    """A typed error, also a TimeoutError, with state and time."""
    run = side.client.start(stuck(side, wf))
    side.eventually(lambda: side.effects()["first"] == 1)
    with pytest.raises(TimeoutError, match=r"is still running after 0\.3 s; it goes on") as caught:
        side.client.wait(run, timeout=0.3)
    assert isinstance(caught.value, WaitTimeout)
    assert (caught.value.run_id, caught.value.state, caught.value.seconds) == (run.id, "running", 0.3)
    with pytest.raises(NotFinished, match="is running and has no result yet"):
        side.client.result(run)
    with pytest.raises(NotFinished):
        side.client.result(run, "second")
    side.client.cancel(run)


def test_wrong_starts_are_refused_before_anything_is_written(side: Side, wf: Workflow) -> None:
    """Unknown names, wrong parameters, keys and sizes; each names the field."""
    client = side.client
    with pytest.raises(NotFound, match="no workflow 'nowhere'"):
        client.start("nowhere")
    with pytest.raises(ParameterError, match=r"'n'.*missing|required"):
        client.start(one("refused"))
    with pytest.raises(ParameterError, match="'n'.*integer"):
        client.start(one("refused"), {"n": "many"})
    with pytest.raises(ParameterError, match="'m'"):
        client.start(one("refused"), {"n": 1, "m": 2})
    with pytest.raises(DefinitionError, match="a run's key is a text of 1 to 500 characters"):
        client.start(one("refused"), {"n": 1}, key="")
    with pytest.raises(DefinitionError, match="'ad'.*add"):
        client.start({"name": "refused", "steps": {"s": {"action": "ad", "inputs": {}}}})
    wide = Workflow("refused", params={"text": str}, register=False)
    wide.step("s", steps.returns, value=wide.params.text)
    with pytest.raises(ParameterError, match="NUL"):
        client.start(wide, {"text": "a\x00b"})
    with pytest.raises(ValueTooLarge, match="the parameters of workflow 'refused'"):
        client.start(wide, {"text": "x" * 1_100_000})
    assert client.list("refused") == []


def test_unknown_runs_and_steps_are_not_found(side: Side) -> None:
    """Ids that exist nowhere, that are none, and steps that a run does not have."""
    run = side.finish(one(), {"n": 1})
    for wrong in (NOWHERE, "seven"):
        for ask in (
            side.client.get,
            side.client.wait,
            side.client.result,
            side.client.steps,
            side.client.cancel,
        ):
            with pytest.raises(NotFound, match=f"there is no run '{wrong}'"):
                ask(wrong)
    with pytest.raises(NotFound, match="there is no step 'nothing': run .* has none of this name"):
        side.client.result(run, "nothing")


def test_a_stored_definition_starts_by_its_name(side: Side, wf: Workflow) -> None:
    """The journal keeps what was started; its newest definition is found by name."""
    side.client.start(one("known"), {"n": 1})
    again = side.finish("known", {"n": 5})
    assert side.client.result(again) == {"sum": 6}
    assert side.client.definition(again).steps["sum"].action == "add"


def test_lists_go_by_workflow_state_and_page(side: Side) -> None:
    """Newest first, page after page."""
    runs = [side.finish(one("paged-a" if n % 2 else "paged-b"), {"n": n}).id for n in range(5)]
    bad = Workflow("paged-a", register=False)
    bad.step("bad", steps.fails)
    failed = side.finish(bad).id
    assert [run.id for run in side.client.list("paged-a")] == [failed, runs[3], runs[1]]
    assert [run.id for run in side.client.list("paged-a", state="succeeded")] == [runs[3], runs[1]]
    assert [run.id for run in side.client.list("paged-a", state=RunState.FAILED)] == [failed]
    assert [run.id for run in side.client.list("paged-b", limit=2)] == [runs[4], runs[2]]
    assert [run.id for run in side.client.list("paged-b", limit=2, before=runs[2])] == [runs[0]]


def test_the_events_of_a_run_tell_its_story_in_order(side: Side) -> None:
    """From creation to success, with every step's begin and end."""
    run = side.finish(one(), {"n": 1})
    events = side.client.events(run)
    assert [(event.kind, event.step, event.attempt) for event in events] == [
        ("run.created", None, None), ("run.started", None, None), ("step.started", "sum", 1),
        ("step.succeeded", "sum", 1), ("run.succeeded", None, None),
    ]  # fmt: skip
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_progress_counts_steps_and_items(side: Side, wf: Workflow) -> None:
    """A map's own two rows are no steps of the user's."""
    ok = wf.map("ok", steps.add, over=[1, 2, 3], a=wf.item)
    no = wf.step("no", steps.noop, when="1 > 2")
    wf.step("behind", steps.noop, after=[ok, no])
    wf.step("bad", steps.fails, on_failure="skip")
    run = side.finish(wf)
    progress = side.client.progress(run)
    assert (progress.total, progress.done) == (6, 6)
    assert progress.by_state == {StepState.SUCCEEDED: 3, StepState.SKIPPED: 2, StepState.FAILED: 1}


def test_steps_are_listed_as_they_stand(side: Side, wf: Workflow) -> None:
    """With action, queue, priority, attempts and error; times only where there are some."""
    bad = wf.step("bad", steps.fails, priority=7, on_failure="skip", message="m")
    wf.step("behind", steps.noop, after=[bad])
    run = side.finish(wf)
    first, second = side.client.steps(run)
    assert (first.idx, first.name, first.action, first.queue, first.priority) == (
        0,
        "bad",
        "fails",
        "celery",
        7,
    )
    assert (first.state, first.attempt, first.failures) == (StepState.FAILED, 1, 1)
    assert first.error is not None
    assert {name: first.error[name] for name in ("step", "type", "message")} == {
        "step": "bad", "type": "RuntimeError", "message": "m",
    }  # fmt: skip
    assert first.seconds is not None
    assert (second.state, second.attempt, second.error, second.progress) == (StepState.SKIPPED, 1, None, None)
