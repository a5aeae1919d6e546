"""Runs are deleted when their time is over, whole, and only those that nobody needs any more."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import steps
from stack import Stack

from trellis.tasks.errors import ArtifactPurged, DefinitionError, NotFound, StateError
from trellis.workflows import Artifact, Workflow, trimming
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
    assert [each[:2] for each in stack.client.retentions()] == [
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


def kinds(stack: Stack, run: str) -> list[str]:
    return [kind for (kind,) in stack.rows("SELECT kind FROM event WHERE run_id = %s ORDER BY id", run)]


def trimmed(stack: Stack) -> int:
    return tick(stack.engine)["trimmed"]


def test_events_and_artifacts_may_go_before_their_run(stack: Stack) -> None:
    """Each at its own time; the run, its steps and results stay, and it says what is gone."""
    old, middle, young = (finished(stack, bad=True, days=days) for days in (8, 4, 1))
    other = finished(stack, "other", bad=True, days=8)
    note = Artifact.model_validate(stack.client.result(old, "note"))
    stack.client.retain("w", events=timedelta(days=7), artifacts=timedelta(days=3))
    assert trimmed(stack) == 3  # the events of one, the artifacts of two
    assert kinds(stack, old) == ["events.purged"]
    assert "events.purged" in [event.kind for event in stack.client.events(old)]
    for run in (middle, young, other):
        assert "run.failed" in kinds(stack, run)
    assert [(folder(stack, run) / "note").exists() for run in (old, middle, young, other)] == [
        False, False, True, True]  # fmt: skip
    assert stack.client.steps(old)[0].state == "succeeded"
    with pytest.raises(ArtifactPurged, match=f"purged by retention: the artifacts of run {old}") as caught:
        note.read_text()
    assert (caught.value.uri, caught.value.run) == (note.uri, old)
    assert not note.exists()
    assert trimmed(stack) == 0
    stack.client.retain("w", timedelta(days=7))
    assert tick(stack.engine)["purged"] == 1
    assert not folder(stack, old).exists()
    assert ids(stack) == {middle, young, other}


def test_a_step_that_wants_a_purged_artifact_says_so(stack: Stack) -> None:
    """In a rerun of its run, too."""
    wf = Workflow("w", register=False)
    wf.step("read", steps.reads, file=wf.step("write", steps.writes, text="abc"))
    run = stack.client.start(wf).id
    stack.drain(run)
    stack.rows("UPDATE run SET finished_at = now() - interval '1 day'")
    stack.client.retain("w", artifacts=timedelta(hours=1))
    assert trimmed(stack) == 1
    again = stack.client.rerun(run, from_step="read").id
    stack.drain(again)
    error = stack.client.get(again).error
    assert error is not None
    assert (error["type"], "was purged by retention" in error["message"]) == ("ArtifactPurged", True)
    whole = stack.client.rerun(run, from_step="write").id
    stack.drain(whole)
    assert stack.client.result(whole) == {"read": "abc"}


def test_parts_go_in_small_batches_and_each_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk goes on where it came to; runs that ended at one moment go together, and children by their own time."""
    monkeypatch.setattr("trellis.workflows.trimming._RUNS", 2)
    monkeypatch.setattr("trellis.workflows.trimming._ROWS", 1)
    runs = [finished(stack, bad=True, days=9 - n) for n in range(5)]
    stack.rows("UPDATE run SET finished_at = now() - interval '8 days' WHERE id = ANY(%s::uuid[])", runs[1:4])
    stack.rows("UPDATE run SET parent_run = %s WHERE id = %s", runs[0], runs[2])
    stack.client.retain("w", events=timedelta(hours=1))
    assert [trimmed(stack) for _ in range(3)] == [4, 1, 0]
    assert all(kinds(stack, run) == ["events.purged"] for run in runs)
    stack.rows("UPDATE run SET parent_run = NULL")
    assert trimmed(stack) == 0
    [late] = [finished(stack, bad=True, days=1)]
    assert trimmed(stack) == 1
    assert kinds(stack, late) == ["events.purged"]


def test_a_folder_that_cannot_be_purged_has_its_turn_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (finished(stack, days=days) for days in (9, 8))
    stack.client.retain("w", artifacts=timedelta(days=1))
    real = trimming.artifacts.purge

    def broken(root: str, run: str) -> None:
        if run == second:
            raise PermissionError(run)
        real(root, run)

    monkeypatch.setattr(trimming.artifacts, "purge", broken)
    assert [trimmed(stack) for _ in range(2)] == [1, 0]
    monkeypatch.setattr(trimming.artifacts, "purge", real)
    assert trimmed(stack) == 1
    assert not any((folder(stack, run) / "note").exists() for run in (first, second))


def test_what_is_said_of_a_part_stands_by_itself(stack: Stack) -> None:
    day = timedelta(days=1)
    stack.client.retain("a", events=day)
    stack.client.retain("b", 3 * day, artifacts=2 * day)
    assert stack.client.retentions() == [("a", None, day, None), ("b", 3 * day, None, 2 * day)]
    stack.client.retain("b", None)
    stack.client.retain("a", events=timedelta.max)
    assert stack.client.retentions() == [("b", None, None, 2 * day)]
    stack.client.retain("b", artifacts=None)
    assert stack.client.retentions() == []
    for spans in ({}, {"events": timedelta(0)}, {"artifacts": -day}):
        with pytest.raises(DefinitionError, match="say how long, and what|above 0"):
            stack.client.retain("a", **spans)


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
