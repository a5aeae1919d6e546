"""Plans: on a journal without statistics every hot statement reaches its steps through the whole primary key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import steps
from psycopg import sql
from stack import Stack

from trellis.tasks.database import PLANNER
from trellis.tasks.queries import numbered
from trellis.workflows import Workflow
from trellis.workflows.control import SQL as CONTROL
from trellis.workflows.journal import SQL

ARGUMENTS: dict[str, Any] = {
    "run": "01a1f80c-cf3a-7686-8674-c566556c6650", "idx": [1, 2], "lease": ["01a1f80c-cf3a-7686-8674-c566556c6650"],
    "worker": "w", "commit": "on", "seconds": 30.0, "timeout": 60.0, "grace": 5.0, "outcomes": "[]", "ahead": "{}",
    "queue": "q", "budget": 50.0, "room": 10, "new_lease": "01a1f80c-cf3a-7686-8674-c566556c6650", "sent": False,
    "age": 1.0, "limit": 100, "progress": ["1"], "count": 3, "first": 4,
    "default": "1 day", "workflow": "w1", "state": "paused", "after": "01a1f80c-cf3a-7686-8674-c566556c6650",
    "waits_for": "signal:x", "wait": "{}", "until": None, "delay": 1.0, "by": "signal",
    "short": 0.02, "actions": ["noop"], "most": 0.05, "crowd": 64,
}  # fmt: skip
SINGLE = {"claim": {"lease": ARGUMENTS["new_lease"]}, "claim_ranked": {"lease": ARGUMENTS["new_lease"]},
          "leased": {"lease": ARGUMENTS["new_lease"]}, "take_expired": {"lease": ARGUMENTS["new_lease"]},
          "widen": {"idx": 1, "inputs": "{}"}, "park": {"idx": 1, "lease": ARGUMENTS["new_lease"]},
          "take_woken": {"idx": 1},
          "hold": {"idx": 1, "lease": ARGUMENTS["new_lease"]},
          "intend": {"idx": 1, "lease": ARGUMENTS["new_lease"]},
          }  # fmt: skip
LISTS = {"renew": {"run": [ARGUMENTS["run"]], "seconds": [30.0]}}


def plan(stack: Stack, name: str, statements: Mapping[str, bytes] = SQL) -> str:
    """The generic plan of a statement, as the engine's connections make it."""
    values = ARGUMENTS | SINGLE.get(name, {}) | LISTS.get(name, {})
    text, names = numbered(statements[name])
    with stack.connect() as connection:
        for option in PLANNER.split("-c ")[1:]:
            setting, value = option.strip().split("=")
            connection.execute(f"SET {setting} = {value}")
        connection.execute(b"PREPARE it AS " + text)
        call = sql.SQL("EXPLAIN EXECUTE it ({})").format(
            sql.SQL(", ").join(sql.Literal(values[n]) for n in names)
        )
        return "\n".join(row[0] for row in connection.execute(call))


@pytest.mark.parametrize(
    "name",
    [
        "claim",
        "claim_ranked",
        "complete",
        "intend",
        "results",
        "names",
        "renew",
        "release",
        "widen",
        "hold",
        "take_ready",
        "take_expired",
        "suspect",
        "park",
        "take_due",
        "take_woken",
    ],
)
@pytest.mark.parametrize("analysed", [False, True], ids=["fresh", "analysed"])
def test_steps_are_reached_by_run_and_id(stack: Stack, name: str, analysed: bool) -> None:
    """Both columns stand in the condition of every scan of the key, and no table is read as a whole.

    With `run_id` alone a statement costs the size of the run per step: claims of 500 took 125 ms instead of 6.
    """
    wf = Workflow("planned", register=False)
    wf.map("each", steps.noop, over=list(range(3000)))
    run = stack.client.start(wf).id
    stack.engine.run_bundle("trellis.map", run, [0])
    stack.rows(
        "INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing) "
        "SELECT gen_random_uuid(), workflow, definition, '', state, '{}', 1, 1 FROM run, generate_series(1, 2000)"
    )
    if analysed:
        stack.rows("ANALYZE")
    shown = plan(stack, name)
    scans = re.findall(r"Index Scan using step_pkey on step\b.*\n\s*(.*)", shown)
    assert scans, shown
    for condition in scans:
        assert "run_id =" in condition, shown
        assert "idx =" in condition, shown
    assert "Seq Scan" not in shown, shown
    assert "Hash Join" not in shown, shown
    assert set(re.findall(r"using (run_\w+)", shown)) <= {"run_pkey"}, shown


@pytest.mark.parametrize("analysed", [False, True], ids=["fresh", "analysed"])
def test_the_most_urgent_steps_are_the_first_of_their_index(stack: Stack, analysed: bool) -> None:
    """A claim of ranked steps reads as many entries as it takes, and sorts nothing but those."""
    wf = Workflow("planned", register=False)
    for at in range(2000):
        wf.step(f"s{at}", steps.noop, expect=1.0 + at)
    stack.client.start(wf)
    if analysed:
        stack.rows("ANALYZE")
    shown = plan(stack, "claim_ranked")
    result = r"(?:\s*->\s*Result.*\n\s*One-Time Filter.*\n)?"  # whether the queue is paused, once
    scan = r"\s*->\s*Index Scan using step_ranked on step .*\n\s*Index Cond: (.*)"
    found = re.search(rf"LockRows.*\n{result}{scan}", shown)
    assert found, shown
    assert "run_id =" in found[1], shown
    assert "queue =" in found[1], shown


@pytest.mark.parametrize("name", ["to_follow", "stray_runs", "expired_runs", "runs_in"])
@pytest.mark.parametrize("analysed", [False, True], ids=["fresh", "analysed"])
def test_chores_are_led_to_their_runs_by_an_index(stack: Stack, name: str, analysed: bool) -> None:
    """However many runs there are, a tick reads those that it acts on: no scan of runs, no sort."""
    wf = Workflow("planned", register=False)
    wf.step("only", steps.noop)
    stack.client.start(wf)
    stack.rows(
        "INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing, finished_at) "
        "SELECT gen_random_uuid(), 'w' || n %% 3, definition, '', 'succeeded', '{}', 1, 0, now() "
        "FROM run, generate_series(1, 3000) n"
    )
    if analysed:
        stack.rows("ANALYZE")
    shown = plan(stack, name, CONTROL)
    assert "Seq Scan" not in shown, shown
    assert "Sort" not in shown, shown
