"""What screens read of a run: counted by Postgres, bounded in length."""

from __future__ import annotations

import uuid

import pytest
import steps
from stack import Stack

from trellis.tasks.errors import NotFound
from trellis.workflows import Default, Retry, Workflow
from trellis.workflows.nodes import Node
from trellis.workflows.states import StepState
from trellis.workflows.summaries import Summaries


@pytest.fixture
def summaries(stack: Stack) -> Summaries:
    return Summaries(stack.client.database)


def started(stack: Stack, workflow: Workflow, **params: object) -> str:
    return stack.client.start(workflow, params).id


def finished(stack: Stack, workflow: Workflow, **params: object) -> str:
    run = started(stack, workflow, **params)
    stack.drain(run)
    return run


def by_name(nodes: list[Node]) -> dict[str, Node]:
    return {node.name: node for node in nodes}


def mapped(name: str = "mapped") -> Workflow:
    wf = Workflow(name, params={"n": int}, register=False)
    numbers = wf.step("numbers", steps.numbers, n=wf.params.n)
    wf.step("sum", steps.total, values=wf.map("plus", steps.add, over=numbers, a=wf.item))
    return wf


def test_a_map_is_one_node_before_and_after_it_has_items(stack: Stack, summaries: Summaries) -> None:
    """The two rows that the engine keeps for it are no steps of their own."""
    run = started(stack, mapped(), n=5)
    nodes = by_name(summaries.nodes(run, 10).shown)
    assert list(nodes) == ["numbers", "plus", "sum"]
    assert (nodes["plus"].action, nodes["plus"].is_map) == ("add", True)
    assert nodes["plus"].states == {StepState.WAITING: 1}
    assert stack.client.progress(run).total == 2
    stack.drain(run)
    nodes = by_name(summaries.nodes(run, 10).shown)
    assert nodes["plus"].states == {StepState.SUCCEEDED: 5}
    assert nodes["plus"].attempts == 5
    assert stack.client.progress(run).by_state == {StepState.SUCCEEDED: 7}


def test_a_map_over_nothing_has_the_state_of_what_gathers_it(stack: Stack, summaries: Summaries) -> None:
    run = finished(stack, mapped(), n=0)
    assert by_name(summaries.nodes(run, 10).shown)["plus"].states == {StepState.SUCCEEDED: 1}


def test_what_failed_and_what_runs_comes_first_where_not_all_fit(stack: Stack, summaries: Summaries) -> None:
    """But what is shown keeps the order of the graph, and the rest is counted."""
    wf = Workflow("wide", register=False)
    for number in range(10):
        wf.step(f"s{number}", steps.noop)
    wf.step("broken", steps.fails, on_failure="skip")
    wf.step("last", steps.noop)
    run = finished(stack, wf)
    stack.rows("UPDATE step SET state = 'running' WHERE run_id = %s AND name = 'last'", run)
    nodes = summaries.nodes(run, 4)
    assert [node.name for node in nodes.shown] == ["s0", "s1", "broken", "last"]
    assert nodes.total == 12


def test_retries_are_counted_over_all_nodes(stack: Stack, summaries: Summaries) -> None:
    wf = Workflow("retries", register=False)
    for name in ("a", "b", "c"):
        wf.step(name, steps.fails_until, ledger=stack.ledger, attempt=3, retry=Retry(3, base=0))
    nodes = summaries.nodes(finished(stack, wf), 1)
    assert [(node.name, node.attempts, node.retries) for node in nodes.shown] == [("a", 3, 2)]
    assert nodes.retries == 6


def test_incidents_are_the_latest_without_their_tracebacks(stack: Stack, summaries: Summaries) -> None:
    wf = Workflow("incidents", register=False)
    wf.step("broken", steps.fails, message="no", retry=Retry(3, base=0))
    run = finished(stack, wf)
    found = summaries.incidents(run, 10)
    assert [(each.kind, each.step, each.attempt) for each in found] == [
        ("step.retry", "broken", 1),
        ("step.retry", "broken", 2),
        ("step.failed", "broken", 3),
        ("run.failed", None, None),
    ]
    assert found[0].detail["message"] == "no"
    assert "traceback" not in found[0].detail
    assert [each.id for each in summaries.incidents(run, 2)] == [each.id for each in found[-2:]]
    assert [each.kind for each in summaries.incidents(run, 10, kind="step.failed")] == ["step.failed"]


def test_endings_are_cut_by_postgres(stack: Stack, summaries: Summaries) -> None:
    """A megabyte of result does not travel for ten characters of it."""
    wf = Workflow("endings", register=False)
    wf.step("big", steps.big, size=10_000)
    wf.step("none", steps.noop)
    wf.step("default", steps.fails, on_failure=Default(7))
    wf.step("skipped", steps.noop, when="1 > 2")
    run = finished(stack, wf)
    found, total = summaries.endings(run, 10, 20)
    assert [(each.name, each.text, each.size) for each in found] == [
        ("big", '"' + "x" * 19, 10_002),
        ("none", "null", 4),
        ("default", "7", 1),
    ]
    assert total == 3
    found, total = summaries.endings(run, 2, 20)
    assert (len(found), total) == (2, 3)


def test_the_end_of_a_map_has_the_map_s_name(stack: Stack, summaries: Summaries) -> None:
    wf = Workflow("mapped_end", register=False)
    wf.map("plus", steps.add, over=[1, 2], a=wf.item)
    found, _ = summaries.endings(finished(stack, wf), 5, 100)
    assert [(each.name, each.text) for each in found] == [("plus", "[2, 3]")]


def test_what_runs_is_told_with_its_progress(stack: Stack, summaries: Summaries) -> None:
    run = started(stack, mapped(), n=3)
    stack.rows(
        "UPDATE step SET state = 'running', attempt = 2, started_at = now() - interval '90 s', "
        "progress = '{\"rows\": 3}' WHERE run_id = %s AND name = 'numbers'",
        run,
    )
    (running,) = summaries.running(run, 8)
    assert (running.name, running.attempt, running.progress) == ("numbers", 2, {"rows": 3})
    assert 90 <= running.seconds < 120


def test_needs_are_those_of_steps_that_could_run_now(stack: Stack, summaries: Summaries) -> None:
    wf = Workflow("needs", register=False)
    wf.step("a", steps.noop)
    wf.step("b", steps.noop, queue="gpu")
    wf.step("behind", steps.add, a=1, after=["a"])
    run = started(stack, wf)
    assert summaries.needs(run, 10) == {("noop", "celery"), ("noop", "gpu")}
    stack.rows("UPDATE step SET due_at = now() + interval '1 hour' WHERE run_id = %s AND name = 'b'", run)
    assert summaries.needs(run, 10) == {("noop", "celery")}


def test_silence_is_the_age_of_the_last_tick(stack: Stack, summaries: Summaries) -> None:
    assert summaries.silence() is None
    stack.engine.journal.beat("tick", None)
    stack.rows("UPDATE heartbeat SET at = at - interval '1 minute'")
    assert 60 <= (summaries.silence() or 0) < 90


def test_a_run_is_found_by_the_beginning_of_its_id(stack: Stack, summaries: Summaries) -> None:
    """With or without dashes, in either case."""
    run = started(stack, mapped(), n=1)
    for text in (run, run.upper(), run.replace("-", ""), run[:13], run[:20], run[:5]):
        assert summaries.find(text) == run


def test_a_beginning_of_several_ids_is_refused_with_them(stack: Stack, summaries: Summaries) -> None:
    runs = [started(stack, mapped(), n=1) for _ in range(7)]
    with pytest.raises(NotFound, match="give more of its id, since several begin so") as refused:
        summaries.find(runs[0][:4])
    shown = str(refused.value).rpartition(": ")[2].split(", ")
    assert len(shown) == 6
    assert shown[-1] == "…"
    assert all(runs[-1 - number].startswith(each) for number, each in enumerate(shown[:-1]))


@pytest.mark.parametrize("text", ["zzz", "", "-", "0" * 33, "ffffffff"])
def test_what_is_no_id_is_refused(summaries: Summaries, text: str) -> None:
    with pytest.raises(NotFound):
        summaries.find(text)


def test_a_whole_id_is_not_looked_for(summaries: Summaries) -> None:
    """Whoever asks for the run hears soon enough."""
    unknown = str(uuid.uuid4())
    assert summaries.find(unknown) == unknown


def test_the_journal_tells_the_names_of_its_workflows(stack: Stack, summaries: Summaries) -> None:
    for name in ("b", "a", "b"):
        started(stack, mapped(name), n=1)
    assert summaries.workflows() == ["a", "b"]


def test_states_are_those_of_every_row(stack: Stack, summaries: Summaries) -> None:
    run = finished(stack, mapped(), n=1)
    assert summaries.states(run) == dict.fromkeys(
        ["numbers", "plus", "plus[]", "plus[0]", "sum"], "succeeded"
    )
