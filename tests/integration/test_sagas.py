"""Compensation: what finished steps did is undone after a failure or a cancel, in reverse order, durably and once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import DefinitionError, StateError
from trellis.workflows import Default, Workflow, files
from trellis.workflows.compensation import in_order
from trellis.workflows.following import FOLLOWERS, follow
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState, StepState


def trip(stack: Stack, file: str = "/nonexistent", name: str = "trip") -> Workflow:
    """Books one after the other; the last booking fails until a file is there."""
    wf = Workflow(name, params={"who": str}, register=False)
    hotel = wf.step("hotel", steps.effect, ledger=stack.ledger, value={"id": "h1"})
    flight = wf.step("flight", steps.effect, ledger=stack.ledger, value={"id": "f1"}, after=[hotel])
    car = wf.step("car", steps.works_if, file=file, after=[flight])
    wf.step("note", steps.noop, after=[car])
    for option, prefix in ((wf.on_failure, "undo"), (wf.on_cancel, "stop")):
        option(f"{prefix}_hotel", steps.effect, of=hotel, ledger=stack.ledger, value=hotel["id"])
        option(f"{prefix}_flight", steps.effect, of="flight", ledger=stack.ledger,
               value={"who": wf.params.who, "flight": flight["id"]})  # fmt: skip
        option(f"{prefix}_car", steps.effect, of=car, ledger=stack.ledger)
        option(f"{prefix}_told", steps.effect, ledger=stack.ledger, value=car)
    return wf


def undoing(wf: Workflow, **options: Any) -> Workflow:
    wf.on_failure("undo", steps.returns, **options)
    return wf


def linked(stack: Stack, run: str) -> list[str]:
    return [str(row[0]) for row in stack.rows("SELECT id FROM run WHERE origin = %s ORDER BY id", run)]


def order(stack: Stack, run: str) -> list[str]:
    return [line[1] for line in stack.lines() if line[0] == run]


def test_a_failed_run_is_undone_in_reverse_order_and_only_what_succeeded(stack: Stack) -> None:
    run = stack.client.start(trip(stack), {"who": "Ada"}).id
    stack.drain(run)
    assert stack.client.get(run).state is RunState.FAILED
    tick(stack.engine)
    [undo] = linked(stack, run)
    assert stack.client.get(undo).workflow == "trip.on_failure"
    assert stack.client.get(undo).correlation_id == run
    stack.drain(undo)
    assert stack.client.get(undo).state is RunState.SUCCEEDED
    assert order(stack, undo) == ["undo_flight", "undo_hotel", "undo_told"]
    assert stack.client.result(undo, "undo_hotel") == "h1"
    assert stack.client.result(undo, "undo_flight") == {"who": "Ada", "flight": "f1"}
    assert stack.client.result(undo, "undo_told") is None  # the car was never there


def test_a_cancelled_run_has_steps_of_its_own(stack: Stack) -> None:
    run = stack.client.start(trip(stack), {"who": "Ada"}).id
    stack.engine.run_bundle("effect", run, [0])
    stack.client.cancel(run)
    tick(stack.engine)
    [undo] = linked(stack, run)
    assert stack.client.get(undo).workflow == "trip.on_cancel"
    stack.drain(undo)
    done = order(stack, undo)
    assert done[-1] == "stop_told"
    assert set(done) >= {"stop_hotel"}


def test_a_run_that_succeeds_is_not_undone_and_nothing_follows_twice(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "there"
    file.touch()
    fine = stack.client.start(trip(stack, str(file)), {"who": "Ada"}).id
    stack.drain(fine)
    assert stack.client.get(fine).state is RunState.SUCCEEDED
    bad = stack.client.start(trip(stack), {"who": "Ada"}).id
    stack.drain(bad)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: follow(stack.engine.journal, stack.engine.dispatcher, bad), range(16)))
    for _ in range(3):
        tick(stack.engine)
    assert linked(stack, fine) == []
    assert len(linked(stack, bad)) == 1
    assert stack.rows("SELECT id FROM run WHERE follow") == []


def test_a_follower_that_fails_is_called_again_and_the_undoing_stays_one(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between two followers."""
    calls = []

    def breaks(*_: object) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("the broker is away")

    monkeypatch.setitem(FOLLOWERS, "compensation", FOLLOWERS["compensation"])
    monkeypatch.setitem(FOLLOWERS, "broken", breaks)
    run = stack.client.start(trip(stack), {"who": "Ada"}).id
    stack.rows("""UPDATE run SET hooks = hooks || '{"broken": {}}' WHERE id = %s""", run)
    stack.drain(run)
    for _ in range(5):
        tick(stack.engine)
    assert len(calls) == 3
    assert len(linked(stack, run)) == 1


def test_an_undoing_step_that_fails_is_a_dead_letter_and_its_replay_goes_on(
    stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "there"
    wf = Workflow("stuck", register=False)
    first = wf.step("first", steps.noop)
    second = wf.step("second", steps.noop, after=[first])
    wf.step("bad", steps.fails, after=[second])
    wf.on_failure("undo_first", steps.effect, of=first, ledger=stack.ledger)
    wf.on_failure("undo_second", steps.works_if, of=second, file=str(file))
    run = stack.client.start(wf).id
    stack.drain(run)
    tick(stack.engine)
    [undo] = linked(stack, run)
    stack.drain(undo)
    assert [letter.step for letter in stack.client.dead_letters("stuck.on_failure")] == ["undo_second"]
    assert order(stack, undo) == []
    file.touch()
    stack.client.retry(undo)
    stack.drain(undo)
    assert stack.client.get(undo).state is RunState.SUCCEEDED
    assert order(stack, undo) == ["undo_first"]


def test_a_run_that_was_undone_is_not_retried(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finished steps would count although what they did is undone; before that it may be, and is undone later."""
    run = stack.client.start(trip(stack), {"who": "Ada"}).id
    with monkeypatch.context() as patch:
        patch.setattr("trellis.workflows.ending.follow", lambda *_: None)  # as after a crash
        stack.drain(run)
    assert stack.client.retry(run)
    assert stack.rows("SELECT follow, state FROM run") == [(True, "running")]
    stack.drain(run)
    [undo] = linked(stack, run)
    with pytest.raises(StateError, match=f"compensated by run {undo}.*rerun"):
        stack.client.retry(run)


def test_the_result_of_a_map_and_a_default_reach_the_undoing(stack: Stack) -> None:
    wf = Workflow("values", register=False)
    each = wf.map("each", steps.add, over=[1, 2, 3], a=wf.item)
    soft = wf.step("soft", steps.fails, on_failure=Default(7))
    wf.step("bad", steps.fails, after=[each, soft])
    wf.on_failure("undo", steps.effect, of=each, ledger=stack.ledger, value={"each": each, "soft": soft})
    wf.on_failure("soft_too", steps.effect, of=soft, ledger=stack.ledger)
    run = stack.client.start(wf).id
    stack.drain(run)
    tick(stack.engine)
    [undo] = linked(stack, run)
    stack.drain(undo)
    assert stack.client.result(undo, "undo") == {"each": [2, 3, 4], "soft": 7}
    assert order(stack, undo) == ["undo"]  # `soft` failed, so there is nothing to undo of it


def test_workers_undo_without_being_asked(stack: Stack) -> None:
    stack.worker()
    stack.beat()
    run = stack.client.start(trip(stack), {"who": "Ada"}).id
    assert stack.client.wait(run, 30).state is RunState.FAILED
    [undo] = eventually(lambda: linked(stack, run))
    assert stack.client.wait(undo, 30).state is RunState.SUCCEEDED
    assert order(stack, undo) == ["undo_flight", "undo_hotel", "undo_told"]


def test_a_file_says_the_same_as_python(stack: Stack) -> None:
    text = """
name: trip
params: {who: {type: string}}
steps:
  hotel: {action: returns, inputs: {value: "${params.who}"}}
on_failure:
  undo: {action: returns, of: hotel, inputs: {value: "${steps.hotel}"}, retry: 3}
on_cancel:
  stop: {action: returns, inputs: {value: 1}, timeout: 5, queue: slow, priority: 9}
  told:
    {task: media.delete, args: ["${steps.hotel}"], kwargs: {why: "${params.who}"}, queue: media, priority: 3, retry: 2}
"""
    wf = Workflow("trip", params={"who": str}, register=False)
    hotel = wf.step("hotel", steps.returns, value=wf.params.who)
    wf.on_failure("undo", steps.returns, of=hotel, value=hotel, retry=3)
    wf.on_cancel("stop", steps.returns, value=1, timeout=5, queue="slow", priority=9)
    told = {"args": [hotel], "kwargs": {"why": wf.params.who}}
    wf.on_cancel("told", task="media.delete", **told, queue="media", priority=3, retry=2)
    read = files.loads(text)
    assert read.digest() == wf.digest()
    assert files.loads(files.dump(wf.spec)).digest() == wf.digest()
    assert Workflow.from_spec(read).digest() == wf.digest()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"of": "gone"}, "`of` names a step 'gone' that does not exist"),
        ({"value": 1, "values": 2}, "'values' is neither an input"),
        ({}, "input 'value' of action 'returns' is missing"),
        ({"value": 1, "priority": 10}, "priority"),
    ],
)
def test_what_is_wrong_is_refused_with_the_step(options: dict[str, object], problem: str) -> None:
    wf = Workflow("wrong", register=False)
    wf.step("first", steps.noop)
    given: dict[str, Any] = {"value": 1, **options} if "of" in options else options
    with pytest.raises(DefinitionError, match=f"workflow 'wrong', step 'undo'.*{problem}"):
        undoing(wf, **given).validate()


def test_other_refusals(stack: Stack) -> None:
    wf = Workflow("wrong", register=False)
    first = wf.step("first", steps.noop)
    with pytest.raises(DefinitionError, match="this step is defined twice"):
        wf.on_cancel("first", steps.noop)
    wf.on_cancel("undo", steps.noop, of=first)
    with pytest.raises(DefinitionError, match="on_cancel has two steps of this name"):
        wf.on_cancel("undo", steps.noop)
    with pytest.raises(DefinitionError, match="on_cancel steps need the engine"):
        wf.canvas()
    with pytest.raises(DefinitionError, match="on_failure.undo.ofs: there is no such field"):
        files.loads("name: a\nsteps: {x: {action: noop}}\non_failure: {undo: {action: noop, ofs: x}}")
    for form, problem in (
        ("task: x, action: noop", "has both an action and a task"),
        ("task: x, inputs: {a: 1}", "takes `args` and `kwargs`, not `inputs`"),
        ("action: noop, args: [1]", "args and kwargs are those of a `task`"),
    ):
        with pytest.raises(DefinitionError, match=problem):
            files.loads(f"name: a\nsteps: {{x: {{action: noop}}}}\non_failure: {{undo: {{{form}}}}}")
    for add in (wf.on_failure, wf.on_cancel):
        with pytest.raises(DefinitionError, match="step 'more'.*needs an action, or task= with the name"):
            add("more")
        with pytest.raises(DefinitionError, match="step 'more'.*'value' is no option: task 'x' takes"):
            add("more", task="x", value=1)


def test_the_order_is_that_of_completion_reversed() -> None:
    """Pure: ties go by the definition, reversed; what did not succeed is left out."""
    rows = [{"of": of, "name": name} for of, name in ((None, "z"), (0, "a"), (1, "b"), (2, "c"), (3, "d"))]
    done = StepState.SUCCEEDED
    finished = {0: (done, 5), 1: (done, 5), 2: (StepState.SKIPPED, 9), 3: (done, 1)}
    assert [row["name"] for row in in_order(rows, finished)] == ["b", "a", "d", "z"]  # type: ignore[arg-type]
