"""Runs that grow, branches that join and loops come to the same on the engine and in-process."""

from __future__ import annotations

from typing import Any

import growing
import pytest
import steps
import turning
from sides import Side

from trellis.tasks.errors import RunFailed
from trellis.workflows import Default, Workflow

FRAGMENT: dict[str, Any] = {
    "steps": {
        "search": {"action": "numbers", "inputs": {"n": 3}},
        "each": {"action": "add", "inputs": {"a": "${item}"}, "map": {"over": "${steps.search}"}},
        "bad": {"action": "fails", "on_failure": "skip"},
        "sum": {"action": "total", "inputs": {"values": "${steps.each}"}},
    }
}


def test_a_body_appends_and_what_stands_behind_waits(side: Side, wf: Workflow) -> None:
    """Names, results, the barrier, and the event."""
    plan = wf.step("plan", growing.plan, parts=[FRAGMENT])
    late = wf.step("late", growing.refers, step="plan.each", after=plan)
    wf.step("finish", growing.reads_all, step="plan", after=late)
    run = side.finish(wf)
    assert side.client.result(run, "finish") == {
        "search": ["succeeded", [0, 1, 2]], "each": ["succeeded", [1, 2, 3]], "bad": ["failed", None],
        "sum": ["succeeded", 6],
    }  # fmt: skip
    assert side.client.result(run, "late.sum") == 7
    told = [event.step for event in side.client.events(run) if event.kind == "step.appended"]
    assert told == ["plan", "late"]


def test_what_a_last_step_appends_is_last(side: Side, wf: Workflow) -> None:
    """The run ends after it, however deep."""
    wf.step("top", growing.down, n=3)
    run = side.finish(wf)
    assert side.client.result(run) == {"top": 3, "top.down": 2, "top.down.down": 1}


def test_a_failing_attempt_appends_nothing(side: Side, wf: Workflow) -> None:
    """Only the last attempt's fragment is there."""
    wf.step("plan", growing.plan_late, ledger=side.ledger, attempts=3)
    run = side.finish(wf)
    assert side.effects() == {"plan": 3, "plan.try3": 1}
    assert [step.name for step in side.client.steps(run)] == ["plan", "plan.try3"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"on_item_failure": "skip"}, [1, 2]),
        (
            {"on_item_failure": "collect"},
            [1, {"error": {"type": "RuntimeError", "message": "broke at 2"}}, 2],
        ),
        ({"on_item_failure": "skip", "gather": False}, 2),
        ({"on_item_failure": "collect", "gather": False}, 3),
        ({"on_failure": Default(0)}, [1, 0, 2]),
    ],
    ids=str,
)
def test_a_map_says_what_becomes_of_failed_items(
    side: Side, wf: Workflow, options: dict[str, Any], expected: Any
) -> None:
    """Left out, counted or replaced."""
    wf.map("each", turning.breaks_at, over=[0, 2, 1], n=wf.item, at=2, concurrency=1, **options)
    run = side.finish(wf)
    assert side.client.result(run, "each") == expected


@pytest.mark.parametrize("n", [1, 2, 3])
def test_branches_join(side: Side, wf: Workflow, n: int) -> None:
    """Whichever of them ran, or none."""
    one = wf.step("one", steps.returns, value={"k": 1}, when=f"{n} == 1")
    two = wf.step("two", steps.returns, value={"k": 2}, when=f"{n} == 2")
    wf.step("meet", steps.returns, value=[one["k"], two["k"]], join="any")
    run = side.finish(wf)
    assert side.client.result(run) == ({"meet": [1, None] if n == 1 else [None, 2]} if n < 3 else {})


def test_a_loop_goes_on_until_its_condition_holds(side: Side, wf: Workflow) -> None:
    """Each turn is a step, and what it appends is done before the next."""
    wf.loop("think", turning.turns_and_grows, until="result == 3", limit=9, n=wf.previous)
    run = side.finish(wf)
    assert side.client.result(run, "think") == 3
    assert side.client.result(run, "think[1].act") == 2


@pytest.mark.parametrize("policy", [None, "skip", Default(-1)], ids=str)
def test_a_loop_past_its_bound_fails_as_it_says(side: Side, wf: Workflow, policy: Any) -> None:
    """Typed, skipped, or answered by a default; so does a turn that fails."""
    for at in (9, 1):
        wf = Workflow(f"{wf.name}_{at}", register=False)
        last = wf.loop(
            "go", turning.breaks_at, until="result > 100", limit=2, n=wf.previous, at=at, on_failure=policy
        )
        wf.step("behind", steps.returns, value=last)
        run = side.finish(wf)
        if policy is None:
            with pytest.raises(RunFailed, match="LoopLimit" if at == 9 else "broke at 1"):
                side.client.result(run)
        else:
            assert side.client.result(run) == ({} if policy == "skip" else {"behind": -1})
