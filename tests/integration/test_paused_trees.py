"""A paused run holds its child runs back and no place in a limit; it stays paused while anything says so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import StateError
from trellis.workflows import Rate, Retry, RunState, Workflow
from trellis.workflows.recovery import tick


def leaf(name: str = "leaf") -> Workflow:
    wf = Workflow(name, register=False)
    wf.step("work", steps.noop)
    return wf


def around(inner: Workflow, name: str) -> Workflow:
    """A workflow with another one as its only step."""
    wf = Workflow(name, register=False)
    wf.child("inner", inner)
    return wf


def family(stack: Stack) -> tuple[str, str, str]:
    """A run, its child run, and the child run of that."""
    top = stack.client.start(around(around(leaf(), "middle"), "top")).id
    found = [top]
    for _ in range(2):
        stack.engine.run_bundle("trellis.child", found[-1], [0])
        found += [str(run) for (run,) in stack.rows("SELECT id FROM run WHERE parent_run = %s", found[-1])]
    return found[0], found[1], found[2]


def states(stack: Stack, *runs: str) -> list[str]:
    return [stack.client.get(run).state.value for run in runs]


def step_states(stack: Stack, run: str) -> dict[str, tuple[str, str | None]]:
    rows = stack.rows("SELECT name, state, waits_for FROM step WHERE run_id = %s ORDER BY idx", run)
    return {name: (state, waits_for) for name, state, waits_for in rows}


def held(stack: Stack) -> list[str]:
    return [gate for (gate,) in stack.rows("SELECT gate FROM permit ORDER BY 1")]


def test_a_pause_goes_down_to_child_runs_and_so_does_its_end(stack: Stack) -> None:
    """Nothing of the tree moves meanwhile, whoever asks."""
    top, middle, below = family(stack)
    assert stack.client.pause(top)
    assert states(stack, top, middle, below) == ["paused"] * 3
    stack.engine.run_bundle("noop", below, [0])
    tick(stack.engine)
    assert step_states(stack, below) == {"work": ("parked", "pause")}
    with pytest.raises(StateError, match=f"run {below} is a part of run {top}, which is paused: resume that"):
        stack.client.resume(below)
    assert stack.client.resume(top)
    assert states(stack, top, middle, below) == ["running", "running", "pending"]
    for run in (below, middle, top):
        stack.drain(run)
    assert states(stack, top, middle, below) == ["succeeded"] * 3


def test_a_child_run_that_begins_under_a_paused_parent_is_paused(stack: Stack) -> None:
    """Its parent's step had been claimed before the pause."""
    run = stack.client.start(around(leaf(), "top")).id
    journal = stack.engine.journal
    real = journal.decide
    paused: list[bool] = []

    def late(*arguments: object) -> object:
        paused.append(stack.client.pause(run))
        return real(*arguments)  # type: ignore[arg-type]

    journal.decide = late  # type: ignore[method-assign, assignment]
    stack.engine.run_bundle("trellis.child", run, [0])
    journal.decide = real  # type: ignore[method-assign]
    assert paused == [True]
    [[child]] = stack.rows("SELECT id FROM run WHERE parent_run = %s", run)
    assert states(stack, run, str(child)) == ["paused", "paused"]
    stack.client.resume(run)
    assert states(stack, run, str(child)) == ["running", "pending"]


def test_a_child_run_that_was_paused_by_itself_stays_so(stack: Stack) -> None:
    """Whichever of the two was paused first, and whichever goes on first."""
    top, middle, below = family(stack)
    for first, second in ((top, middle), (middle, top)):
        assert stack.client.pause(first)
        assert stack.client.pause(second)
        assert stack.client.resume(top)
        assert states(stack, top, middle, below) == ["running", "paused", "paused"]
        assert stack.client.resume(middle)
        assert states(stack, top, middle, below) == ["running", "running", "pending"]


def test_resuming_a_workflow_leaves_what_was_paused_one_by_one(stack: Stack) -> None:
    """A run that somebody paused stays paused, and a paused queue as well."""
    wf = leaf()
    one, two = (stack.client.start(wf).id for _ in range(2))
    assert stack.client.pause(one)
    assert stack.client.pause(workflow="leaf")
    assert stack.client.pause(queue="celery")
    assert stack.client.resume(workflow="leaf")
    assert states(stack, one, two) == ["paused", "pending"]
    assert [(each.kind, each.name) for each in stack.client.pauses()] == [("queue", "celery")]
    stack.engine.run_bundle("noop", two, [0])
    assert step_states(stack, two) == {"work": ("ready", None)}
    assert stack.client.resume(one)


def test_a_run_may_be_paused_while_its_workflow_is(stack: Stack) -> None:
    """It is paused for two reasons then, and goes on when neither is left."""
    run = stack.client.start(leaf()).id
    stack.client.pause(workflow="leaf")
    assert stack.client.pause(run) is True
    assert stack.client.pause(run) is False
    stack.client.resume(workflow="leaf")
    assert states(stack, run) == ["paused"]
    assert stack.client.resume(run)
    assert states(stack, run) == ["pending"]


def test_a_paused_workflow_holds_child_runs_of_others_and_its_own(stack: Stack) -> None:
    """The middle of a tree is paused: what is above waits, what is below stands still."""
    top, middle, below = family(stack)
    stack.client.pause(workflow="middle")
    assert states(stack, top, middle, below) == ["running", "paused", "paused"]
    stack.client.pause(top)
    stack.client.resume(workflow="middle")
    assert states(stack, top, middle, below) == ["paused"] * 3
    stack.client.resume(top)
    assert states(stack, top, middle, below) == ["running", "running", "pending"]


def test_why_names_what_holds_a_run_back(stack: Stack) -> None:
    top, middle, _ = family(stack)
    stack.client.pause(top)
    assert stack.client.why(middle)[0].advice == f"trellis resume {top}"
    stack.client.resume(top)
    stack.client.pause(workflow="middle")
    assert stack.client.why(middle)[0].advice == "trellis resume --workflow middle"


def pause_in_the_midst(stack: Stack, run: str, idx: int) -> None:
    """Run a step; its run is paused while its body runs."""
    journal = stack.engine.journal
    claim = journal.claim

    def then_paused(*arguments: object, **more: object) -> object:
        found = claim(*arguments, **more)  # type: ignore[arg-type]
        stack.client.pause(run)
        return found

    journal.claim = then_paused  # type: ignore[method-assign, assignment]
    stack.engine.run_bundle("noop", run, [idx])
    journal.claim = claim  # type: ignore[method-assign]


def keyed(stack: Stack, *names: str, **options: object) -> str:
    wf = Workflow("keyed", register=False)
    for name in names:
        wf.step(name, steps.noop, concurrency_key="k", **options)  # type: ignore[arg-type]
    return stack.client.start(wf).id


def test_a_paused_run_takes_no_place_and_gives_back_what_it_has_not_begun(stack: Stack) -> None:
    """Others are let in at once; on its return it stands in line like anybody."""
    one = keyed(stack, "a", "b")
    two = keyed(stack, "c")
    assert stack.client.pause(one)
    assert step_states(stack, two) == {"c": ("ready", None)}
    assert step_states(stack, one) == {"a": ("parked", "pause"), "b": ("parked", "pause")}
    assert stack.client.resume(one)
    assert step_states(stack, one) == {"a": ("parked", "gate:key:k"), "b": ("parked", "gate:key:k")}
    stack.drain(two)
    assert step_states(stack, one)["a"] == ("ready", None)
    stack.drain(one)
    assert states(stack, one, two) == ["succeeded", "succeeded"]
    assert held(stack) == []


def test_what_becomes_free_in_a_paused_run_steps_out_of_its_line(stack: Stack) -> None:
    """The body in front of it ran when the run was paused: whoever admits passes it over."""
    wf = Workflow("later", register=False)
    first = wf.step("first", steps.noop)
    wf.step("second", steps.noop, after=first, concurrency_key="k", priority=9)
    run = stack.client.start(wf).id
    pause_in_the_midst(stack, run, 0)
    assert step_states(stack, run) == {"first": ("succeeded", None), "second": ("parked", "pause")}
    other = keyed(stack, "c")
    assert step_states(stack, other) == {"c": ("ready", None)}
    stack.drain(other)
    stack.client.resume(run)
    stack.drain(run)
    assert states(stack, run) == ["succeeded"]


def test_a_run_that_waits_for_its_turn_does_not_get_it_while_it_is_paused(stack: Stack) -> None:
    """The next one in the line of runs begins in its place."""
    wf = Workflow("alone", concurrency_key="one", register=False)
    wf.step("work", steps.noop)
    wf.step("beside", steps.noop)
    runs = [stack.client.start(wf).id for _ in range(3)]
    stack.client.pause(runs[1])
    stack.drain(runs[0])
    assert step_states(stack, runs[2])["work"] == ("ready", None)
    stack.client.resume(runs[1])
    assert step_states(stack, runs[1])["work"] == ("parked", "gate:runs:one")
    stack.drain(runs[2])
    stack.drain(runs[1])
    assert states(stack, *runs) == ["succeeded"] * 3
    assert held(stack) == []


def test_a_run_that_has_begun_keeps_its_own_place(stack: Stack) -> None:
    """It is half done: no other run with its key may begin beside it."""
    wf = Workflow("alone", concurrency_key="one", register=False)
    wf.step("work", steps.noop)
    one, two = (stack.client.start(wf).id for _ in range(2))
    stack.client.pause(one)
    stack.engine.admission.sweep()
    assert step_states(stack, two)["work"] == ("parked", "gate:runs:one")
    stack.client.resume(one)
    for run in (one, two):
        stack.drain(run)
    assert states(stack, one, two) == ["succeeded"] * 2


def test_a_retry_with_a_limit_waits_for_its_time_and_then_for_its_turn(stack: Stack) -> None:
    """The pause of its policy is not cut short by a pause of the run."""
    wf = Workflow("slowly", register=False)
    wf.step("bad", steps.fails, retry=Retry(attempts=2, base=3600, jitter=0), concurrency_key="k")
    run = stack.client.start(wf).id
    stack.engine.run_bundle("fails", run, [0])
    assert held(stack) == ["gate:key:k"]
    stack.client.pause(run)
    assert held(stack) == []
    stack.client.resume(run)
    tick(stack.engine)
    assert step_states(stack, run) == {"bad": ("parked", "start")}
    stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s", run)  # an hour later
    tick(stack.engine)
    assert step_states(stack, run) == {"bad": ("ready", None)}
    assert held(stack) == ["gate:key:k"]
    stack.drain(run)
    assert states(stack, run) == [RunState.FAILED.value]


def test_a_step_that_will_be_skipped_goes_on_without_a_line(stack: Stack) -> None:
    """A pause does not make it stand in one."""
    keyed(stack, "holder")
    wf = Workflow("skipping", register=False)
    first = wf.step("first", steps.noop, when="1 > 2")
    wf.step("second", steps.noop, after=first, concurrency_key="k")
    run = stack.client.start(wf).id
    pause_in_the_midst(stack, run, 0)
    assert step_states(stack, run)["second"] == ("ready", "gate:key:k")
    stack.client.pause(run)
    tick(stack.engine)
    stack.client.resume(run)
    stack.drain(run)
    assert states(stack, run) == ["succeeded"]


def test_the_longest_path_goes_first_in_a_line_too(stack: Stack) -> None:
    """As in a queue without a limit: by priority, then by rank, then as they were written."""
    wf = Workflow("ranked", max_parallel=1, register=False)
    for name, seconds, priority in (("a", 1, 5), ("b", 9, 5), ("c", 5, 5), ("d", 2, 7)):
        wf.step(name, steps.noop, expect=seconds, priority=priority)
    run = stack.client.start(wf).id
    order = []
    while rows := stack.rows("SELECT idx, name FROM step WHERE state = 'ready'"):
        order += [name for _, name in rows]
        for idx, _ in rows:
            stack.engine.run_bundle("noop", run, [idx])
    assert order == ["d", "b", "c", "a"]


def test_a_pause_and_an_admission_at_once_leave_no_place_taken(stack: Stack) -> None:
    """The admission has looked when the pause comes: the pause waits for it, and takes its places back."""
    run = keyed(stack, "a", "b", rate=Rate("r", 1000))
    with stack.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT FROM step WHERE run_id = %s FOR NO KEY UPDATE", [run])
        connection.execute(
            "UPDATE step SET state = 'ready', waits_for = NULL WHERE run_id = %s AND idx = 1", [run]
        )
        connection.execute("INSERT INTO permit (gate, run_id, idx) VALUES ('gate:key:k', %s, 1)", [run])
        with ThreadPoolExecutor(1) as pool:
            pausing = pool.submit(stack.client.pause, run)
            eventually(
                lambda: stack.rows(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
            )
            connection.execute("COMMIT")
            assert pausing.result()
    assert held(stack) == []
    assert set(step_states(stack, run).values()) == {("parked", "pause")}
