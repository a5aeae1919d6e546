"""Runs are deleted when their time is over, whole, and only those that nobody needs any more."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import steps
from stack import Stack

from trellis.tasks.errors import DefinitionError, NotFound, StateError
from trellis.workflows import Workflow
from trellis.workflows.recovery import tick
from trellis.workflows.retention import FOREVER, Purge
from trellis.workflows.states import RunState

TABLES = ("run", "step", "event", "signal", "permit", "run_tag", "dead_letter")


def finished(stack: Stack, name: str = "w", *, bad: bool = False, days: float = 0, width: int = 1) -> str:
    """A run that ended so many days ago."""
    wf = Workflow(name, register=False)
    wf.map("each", steps.noop, over=list(range(width)))
    wf.step("note", steps.writes, text=name)
    wf.wait_for("signal", "go")
    if bad:
        wf.step("bad", steps.fails, after=["signal"])
    run = stack.client.start(wf, tags=["red"]).id
    stack.client.signal(run, "go")
    stack.drain(run)
    assert stack.client.get(run).finished
    stack.rows("UPDATE run SET finished_at = now() - %s WHERE id = %s", timedelta(days=days), run)
    return run


def ids(stack: Stack) -> set[str]:
    return {run.id for run in stack.client.list(limit=1000)}


def left(stack: Stack) -> dict[str, int]:
    return {table: stack.rows(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}


def folder(stack: Stack, run: str) -> Path:
    return Path(stack.settings.artifacts_root().removeprefix("file://")) / run


def test_nothing_is_deleted_unless_somebody_says_so(stack: Stack) -> None:
    run = finished(stack, days=10_000)
    tick(stack.engine)
    assert ids(stack) == {run}


def test_a_run_goes_whole_when_its_time_is_over(stack: Stack) -> None:
    """Rows of every table, and its artifacts; open runs and younger ones stay."""
    old = [finished(stack, days=8, bad=bad) for bad in (True, False)]
    young = finished(stack, days=6)
    wf = Workflow("w", register=False)
    wf.step("only", steps.noop)
    waiting = stack.client.start(wf).id
    assert all(folder(stack, run).is_dir() for run in old)
    stack.client.retain("w", timedelta(days=7))
    assert tick(stack.engine)["purged"] == 2
    assert ids(stack) == {young, waiting}
    assert not any(folder(stack, run).exists() for run in old)
    assert folder(stack, young).is_dir()
    stack.client.delete(young)
    stack.client.cancel(waiting)
    stack.client.delete(waiting)
    assert left(stack) == dict.fromkeys(TABLES, 0)


def test_each_workflow_has_its_time_and_the_setting_is_for_the_others(stack: Stack) -> None:
    runs = {name: finished(stack, name, days=3) for name in ("long", "short", "other", "always")}
    stack.client.retain("long", timedelta(days=30))
    stack.client.retain("short", timedelta(days=1))
    stack.client.retain("always", timedelta.max)
    purge = Purge(stack.engine.database, stack.with_settings(retention_days=2))
    assert purge.expired() == 2
    assert ids(stack) == {runs["long"], runs["always"]}
    assert stack.client.retentions() == [
        ("always", FOREVER), ("long", timedelta(days=30)), ("short", timedelta(days=1))]  # fmt: skip
    stack.client.retain("always", None)
    assert purge.expired() == 1


def test_what_a_rerun_or_a_parent_uses_stays_as_long_as_that(stack: Stack) -> None:
    """A rerun's reused results may name artifacts of the old run."""
    old = finished(stack, days=8, bad=True)
    new = stack.client.rerun(old, from_step="bad").id
    stack.drain(new)
    child = Workflow("kept_child", register=True)
    child.step("only", steps.noop)
    parent = Workflow("parent", register=False)
    parent.child("kid", child)
    top = stack.client.start(parent).id
    stack.drain(top)
    [(kid,)] = stack.rows("SELECT id::text FROM run WHERE parent_run = %s", top)
    stack.drain(kid)
    stack.drain(top)
    assert stack.client.get(top).state is RunState.SUCCEEDED
    stack.rows("UPDATE run SET finished_at = now() - interval '8 days' WHERE id = %s", kid)
    for name in ("w", "kept_child", "parent"):
        stack.client.retain(name, timedelta(days=7))
    assert tick(stack.engine)["purged"] == 0
    for run, why in ((old, f"run {new}, which repeats it"), (kid, f"run {top}, which had it as a step")):
        with pytest.raises(StateError, match=why):
            stack.client.delete(run)
    stack.rows("UPDATE run SET finished_at = now() - interval '8 days'")
    while tick(stack.engine)["purged"]:
        pass
    assert ids(stack) == set()


def test_a_large_run_goes_in_parts_and_is_not_opened_meanwhile(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a crash in between: the next tick goes on."""
    monkeypatch.setattr("trellis.workflows.retention._ROWS", 10)
    run = finished(stack, days=8, bad=True, width=55)
    stack.client.retain("w", timedelta(days=7))
    purge = Purge(stack.engine.database, stack.settings)
    real = purge._ask
    calls = []

    def crash(block: str, **arguments: object) -> object:
        calls.append(block)
        if calls.count("delete_steps") == 3:
            raise KeyboardInterrupt
        return real(block, **arguments)

    monkeypatch.setattr(purge, "_ask", crash)
    with pytest.raises(KeyboardInterrupt):
        purge.expired()
    assert 0 < len(stack.client.steps(run)) < 55
    for verb in (stack.client.retry, stack.client.rerun):
        with pytest.raises(StateError):
            verb(run)
    assert tick(stack.engine)["purged"] == 1
    assert ids(stack) == set()
    assert left(stack)["step"] == 0


def test_a_folder_that_cannot_be_deleted_keeps_its_run(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(stack, days=8)
    stack.client.retain("w", timedelta(days=7))
    broken = stack.with_settings(artifacts_url="nothing://at-all")
    assert Purge(stack.engine.database, broken).expired() == 0
    assert ids(stack) == {run}


def test_wrong_questions_are_refused(stack: Stack) -> None:
    run = finished(stack)
    stack.client.delete(run)
    with pytest.raises(NotFound):
        stack.client.delete(run)
    with pytest.raises(DefinitionError, match="above 0"):
        stack.client.retain("w", timedelta(0))
    wf = Workflow("w", register=False)
    wf.step("only", steps.noop)
    with pytest.raises(StateError, match="cancel it before"):
        stack.client.delete(stack.client.start(wf))
