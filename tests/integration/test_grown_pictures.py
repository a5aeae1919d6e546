"""What tables and pictures show of runs that grew."""

from __future__ import annotations

import growing
import steps
import turning
from rich.console import Console
from stack import Stack

from trellis.workflows import Workflow, render, show
from trellis.workflows.summaries import Summaries

FRAGMENT = {
    "steps": {
        "search": {"action": "numbers", "inputs": {"n": 3}},
        "each": {"action": "add", "inputs": {"a": "${item}"}, "map": {"over": "${steps.search}"}},
    }
}


def grown(stack: Stack) -> str:
    """A run with a plan, a map whose items append, a loop whose turns append, and branches that join."""
    wf = Workflow("grown", register=False)
    plan = wf.step("plan", growing.plan, parts=[FRAGMENT])
    deep = wf.map("deep", growing.down, over=[1, 2, 3], n=wf.item)
    think = wf.loop("think", turning.turns_and_grows, until="result == 2", limit=9, n=wf.previous)
    no = wf.step("no", steps.noop, when="1 == 2")
    wf.step("finish", steps.noop, after=[plan, deep, think, no], join="any")
    run = stack.client.start(wf).id
    stack.drain(run)
    return run


def test_a_picture_shows_what_was_appended_between_who_grew_it_and_who_waits(stack: Stack) -> None:
    """What items of a map or turns of a loop append is one box."""
    run = grown(stack)
    summaries = Summaries(stack.client.database)
    spec = stack.client.definition(run)
    text = render.text(spec, summaries.states(run), summaries.additions(run))
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "grown · 10 steps in 4 levels",
        "",
        "1 - no noop if 1 == 2",
        "✓ deep[] down 3/3 succeeded",
        "✓ plan plan",
        "✓ think[] turns_and_grows 2/2 succeeded until result == 2, at most 9 times",
        "2 ✓ plan.search numbers ← plan appended",
        "✓ deep[].down down ← deep 2/2 succeeded appended",
        "✓ think[].act returns ← think 2/2 succeeded appended",
        "3 ✓ plan.each[] add ← plan.search 3/3 succeeded appended",
        "✓ deep[].down.down down ← deep[].down appended",
        "4 ✓ finish noop ← plan, deep, think, no +1 joins",
        "",
        "- skipped ✓ succeeded",
    ]
    assert "plan.each" in render.draw(spec, summaries.states(run), summaries.additions(run))
    assert "think[].act" in render.mermaid(spec, summaries.states(run), summaries.additions(run))


def test_a_table_counts_appended_steps_turns_and_items(stack: Stack) -> None:
    """A map, a loop, and what their items and turns appended under one name are a line each."""
    run = grown(stack)
    console = Console(width=100)
    with console.capture() as captured:
        nodes = Summaries(stack.client.database).nodes(run, 50)
        console.print(show.table(nodes, stack.client.progress(run)))
    shown = [line.split()[:4] for line in captured.get().splitlines() if line[:1] in "✓-"]
    assert [" ".join(words[:-1] if words[2] in ("succeeded", "skipped") else words) for words in shown] == [
        "✓ plan succeeded",
        "✓ deep[0…2] 3 succeeded",
        "✓ think[0…1] 2 succeeded",
        "- no",
        "✓ finish succeeded",
        "✓ plan.search succeeded",
        "✓ plan.each[0…2] 3 succeeded",
        "✓ deep[].down 2 succeeded",
        "✓ think[].act 2 succeeded",
        "✓ deep[].down.down succeeded",
    ]
