"""What people do to runs from outside has the same effect on the engine and in-process."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
import steps
from sides import Side
from sqlalchemy import select

from trellis.tasks.errors import NotFound, StateError
from trellis.workflows import Default, RunState, Workflow
from trellis.workflows.tables import StepRow


def broken(side: Side, wf: Workflow, file: Path) -> Workflow:
    """A workflow that fails as long as a file is not there."""
    first = wf.step("first", steps.effect, ledger=side.ledger, value=1)
    lost = wf.step("lost", steps.fails, on_failure=Default(0))
    bad = wf.step("bad", steps.works_if, file=str(file), ledger=side.ledger, value=2, after=[first, lost])
    items = wf.map("items", steps.add, over=[1, 2], a=wf.item, b=bad)
    wf.step("sum", steps.total, values=items)
    return wf


def test_a_failed_run_goes_on_where_it_stood(side: Side, wf: Workflow, tmp_path: Path) -> None:
    """Only what failed and what was cancelled runs; what succeeded or failed under a policy stays."""
    file = tmp_path / "there"
    run = side.finish(broken(side, wf, file))
    assert run.state is RunState.FAILED
    [letter] = side.client.dead_letters_of(run)
    assert (letter.run, letter.workflow, letter.step, letter.action) == (run.id, wf.name, "bad", "works_if")
    assert letter.error is not None
    assert letter.error["type"] == "FileNotFoundError"
    file.touch()
    assert side.client.retry(run) is True
    again = side.client.wait(run, timeout=60)
    assert (again.state, again.error, side.client.result(again)) == (RunState.SUCCEEDED, None, {"sum": 7})
    assert side.effects() == {"first": 1, "bad": 2}
    assert side.client.dead_letters_of(run) == []
    with pytest.raises(StateError, match="succeeded, so nothing of it is to be retried"):
        side.client.retry(run)
    kinds = [event.kind for event in side.client.events(run)]
    assert (kinds.count("run.failed"), kinds.count("run.retried"), kinds[-1]) == (1, 1, "run.succeeded")


def test_a_cancelled_run_goes_on(side: Side, wf: Workflow) -> None:
    """Its waiting steps wait anew."""
    wf.step("end", steps.add, a=wf.wait_for("number", "number"))
    run = side.client.start(wf)
    side.eventually(lambda: side.states(run)["number"] == "parked")
    assert side.client.retry(run) is False
    side.client.cancel(run)
    assert side.client.retry(run) is True
    side.client.signal(run, "number", 4)
    assert side.client.result(side.client.wait(run, timeout=60)) == {"end": 5}


def test_dead_letters_are_listed_and_discarded(side: Side, wf: Workflow) -> None:
    """By run and by workflow; discarding changes nothing else."""
    wf.step("bad", steps.fails)
    runs = [side.finish(wf) for _ in range(2)]
    assert [letter.run for letter in side.client.dead_letters(wf.name, limit=2)] == [runs[1].id, runs[0].id]
    assert side.client.discard(runs[0], "bad") == 1
    assert side.client.discard(runs[0]) == 0
    with pytest.raises(NotFound, match="there is no dead letter 'bad'"):
        side.client.discard(runs[0], "bad")
    assert [letter.run for letter in side.client.dead_letters(wf.name, limit=1)] == [runs[1].id]
    assert side.client.get(runs[0]).state is RunState.FAILED
    assert "dead.discarded" in [event.kind for event in side.client.events(runs[0])]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_saga_undoes_what_was_done_in_reverse(side: Side, wf: Workflow, end: str) -> None:
    """As a run of its own, linked to the one that it undoes."""
    one = wf.step("one", steps.effect, ledger=side.ledger, value="a")
    two = wf.step("two", steps.effect, ledger=side.ledger, value="b", after=[one])
    three = wf.step("three", steps.effect, ledger=side.ledger, value=wf.wait_for("hold", "go", after=[two]))
    wf.step("bad", steps.fails, after=[three])
    for add in (wf.on_failure, wf.on_cancel):
        for step in (one, two, three):
            name = f"undo_{step.name}_{add.__name__}"
            add(name, steps.effect, of=step, ledger=side.ledger, value=step)
    run = side.client.start(wf)
    side.eventually(lambda: side.states(run)["hold"] == "parked")
    if end == "failed":
        side.client.signal(run, "go", "c")
    else:
        side.client.cancel(run)
    assert side.client.wait(run, timeout=60).state.value == end
    [undoing] = side.eventually(lambda: side.client.linked(run, "compensation"))
    undoing = side.client.wait(undoing, timeout=60)
    kind = "on_failure" if end == "failed" else "on_cancel"
    assert (undoing.workflow, undoing.state, undoing.origin) == (
        f"{wf.name}.{kind}",
        RunState.SUCCEEDED,
        run.id,
    )
    lines = [line.split()[1] for line in Path(side.ledger).read_text().splitlines()]
    done = ["one", "two", "three"] if end == "failed" else ["one", "two"]
    assert lines == [*done, *(f"undo_{name}_{kind}" for name in reversed(done))]


def test_a_saga_waits_for_the_lease_of_a_body_that_vanished(side: Side, wf: Workflow) -> None:
    """Nobody tells of its end, so until then it may still do something; the run itself is over at once."""
    hotel = wf.step("hotel", steps.effect, ledger=side.ledger)
    wf.step("body", steps.dies, ledger=side.ledger, times=9, after=[hotel])
    wf.step("bad", steps.fails, after=[wf.wait_for("hold", "go", after=[hotel])])
    wf.on_failure("undo", steps.effect, of=hotel, ledger=side.ledger)
    run = side.client.start(wf)
    side.eventually(lambda: side.effects()["body"] and side.states(run)["hold"] == "parked")
    side.client.signal(run, "go")
    assert side.client.wait(run, timeout=60).state is RunState.FAILED
    held = select(StepRow.lease_until).where(StepRow.run_id == UUID(run.id), StepRow.name == "body")
    [(until,)] = side.client.database.read(held)
    assert until is not None
    [undoing] = side.eventually(lambda: side.client.linked(run, "compensation"))
    assert side.client.wait(undoing, timeout=60).state is RunState.SUCCEEDED
    [began] = [step.started_at for step in side.client.steps(undoing) if step.name == "undo"]
    assert began is not None
    assert began >= until
    assert side.effects()["undo"] == 1


# --- pauses and reruns


def test_a_paused_run_begins_nothing(side: Side, wf: Workflow) -> None:
    """Until it is resumed; what it is told meanwhile is kept."""
    hold = wf.wait_for("hold", "go")
    wf.step("after", steps.effect, ledger=side.ledger, after=[hold])
    run = side.client.start(wf)
    side.eventually(lambda: side.states(run)["hold"] == "parked")
    assert side.client.pause(run) is True
    assert side.client.pause(run) is False
    side.client.signal(run, "go")
    side.pass_time(0.5)
    assert side.client.get(run).state is RunState.PAUSED
    assert side.effects() == {}
    assert side.client.resume(run) is True
    assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert side.effects() == {"after": 1}
    with pytest.raises(StateError, match="is over, so it cannot be resumed"):
        side.client.resume(run)


def test_a_paused_workflow_pauses_its_runs_and_new_ones(side: Side, wf: Workflow) -> None:
    """And others go on."""
    wf.step("only", steps.effect, ledger=side.ledger)
    side.client.pause(workflow=wf.name)
    run = side.client.start(wf)
    other = Workflow(f"{wf.name}-other", register=False)
    other.step("other", steps.noop)
    assert side.finish(other).state is RunState.SUCCEEDED
    assert side.client.get(run).state is RunState.PAUSED
    assert [(each.kind, each.name) for each in side.client.pauses()] == [("workflow", wf.name)]
    side.client.resume(workflow=wf.name)
    assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert side.client.pauses() == []


def test_a_rerun_reuses_what_it_does_not_compute(side: Side, wf: Workflow) -> None:
    """From the step that is named, with all behind it; the new run is linked to the old one."""
    one = wf.step("one", steps.effect, ledger=side.ledger, value=1)
    two = wf.step("two", steps.effect, ledger=side.ledger, value=one)
    wf.step("three", steps.effect, ledger=side.ledger, value=[one, two])
    wf.step("beside", steps.effect, ledger=side.ledger, value=4)
    run = side.finish(wf)
    again = side.client.wait(side.client.rerun(run, from_step="two"), timeout=60)
    assert (again.state, again.origin, again.origin_kind) == (RunState.SUCCEEDED, run.id, "rerun")
    assert side.client.result(again) == {"three": [1, 1], "beside": 4}
    assert side.effects() == {"one": 1, "two": 2, "three": 2, "beside": 1}
    assert [each.id for each in side.client.linked(run, "rerun")] == [again.id]


def test_a_rerun_of_a_failed_run_takes_edits(side: Side, wf: Workflow) -> None:
    """Its failed steps are computed again, with other inputs."""
    one = wf.step("one", steps.effect, ledger=side.ledger, value=1)
    wf.step("bad", steps.fails_on, value=one, bad=1)
    run = side.finish(wf)
    assert run.state is RunState.FAILED
    again = side.client.rerun(run, inputs={"bad": {"bad": 2}})
    assert side.client.result(side.client.wait(again, timeout=60)) == {"bad": 1}
    assert side.effects() == {"one": 1}
