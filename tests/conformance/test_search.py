"""Runs are found, counted, done something to in bulk, kept and deleted alike on the engine and in-process."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import steps
from sides import Side

from trellis.tasks.errors import ArtifactPurged, DefinitionError, NotFound, StateError
from trellis.workflows import Artifact, Run, RunState, Workflow


def held(name: str) -> Workflow:
    """A workflow that waits to be told."""
    wf = Workflow(name, register=False)
    wf.wait_for("hold", "go")
    return wf


def test_runs_are_found_by_tags_state_and_age(side: Side, wf: Workflow) -> None:
    """All tags have to be there; pages and counts hold to the same conditions."""
    wf.step("only", steps.noop)
    tags = (["x", "odd"], ["x", "even"], ["x", "odd", "last"])
    runs = []
    for each in tags:
        runs.append(side.finish(wf, tags=[f"{wf.name}-{tag}" for tag in each]).id)
        side.pass_time(0.1)
    x, odd, last = (f"{wf.name}-{tag}" for tag in ("x", "odd", "last"))

    def ids(**wanted: object) -> list[str]:
        found = [run.id for run in side.client.list(**wanted)]  # type: ignore[arg-type]
        wanted.pop("limit", None)
        before = wanted.pop("before", None)
        assert before or len(found) in (2, side.client.count(**wanted))  # type: ignore[arg-type]
        return found

    assert ids(tags=[x]) == runs[::-1]
    assert ids(tags=[x, odd]) == [runs[2], runs[0]]
    assert ids(tags=[x], limit=2) == [runs[2], runs[1]]
    assert ids(tags=[x], limit=2, before=runs[1]) == [runs[0]]
    assert ids(tags=[odd, last], workflow=wf.name, state="succeeded") == [runs[2]]
    assert ids(tags=[x], state=RunState.FAILED) == ids(tags=[x], workflow="another") == []
    side.pass_time(0.2)
    assert ids(tags=[x], since=timedelta(seconds=0.2)) == []
    assert (
        ids(tags=[x], since=timedelta(hours=1))
        == ids(workflow=wf.name, since=timedelta(hours=1))
        == runs[::-1]
    )
    begun = side.client.get(runs[1]).created_at - timedelta(seconds=0.05)
    assert ids(workflow=wf.name, since=begun) == [runs[2], runs[1]]
    assert side.client.count(tags=[x], at_most=1) == 2
    for wrong in ({"state": "over"}, {"tags": [""]}, {"since": begun.replace(tzinfo=None)}):
        with pytest.raises(DefinitionError):
            side.client.list(**wrong)  # type: ignore[arg-type]


def test_many_runs_are_done_something_to_at_once(side: Side, wf: Workflow) -> None:
    """A dry run counts, and does nothing; each verb finds the runs that it fits."""
    runs = [side.client.start(held(wf.name), tags=[wf.name]) for _ in range(3)]
    side.eventually(lambda: all(side.states(run)["hold"] == "parked" for run in runs))
    bulk = side.client.bulk
    assert bulk("cancel", wf.name, dry_run=True) == (3, 0, [])
    assert bulk("pause", tags=[wf.name]) == (3, 3, [])
    assert bulk("resume", wf.name, since=timedelta(hours=1)) == (3, 3, [])
    assert bulk("cancel", wf.name) == (3, 3, [])
    assert bulk("retry", wf.name, dry_run=True).matched == 3
    assert bulk("retry", wf.name, state="cancelled") == (3, 3, [])
    assert {side.client.get(run).state for run in runs} == {RunState.RUNNING}
    assert bulk("cancel", wf.name).done == 3
    assert bulk("delete", wf.name) == (3, 3, [])
    assert side.client.list(wf.name) == []
    for verb, wanted in (("forget", {"workflow": "a"}), ("cancel", {}), ("retry", {"state": "running"})):
        with pytest.raises(DefinitionError):
            bulk(verb, **wanted)  # type: ignore[arg-type]


def test_many_runs_are_repeated_with_changes(side: Side, wf: Workflow, tmp_path: Path) -> None:
    """Those that succeeded too, each once; a rerun that is over at once is none of them. What refuses is named."""
    file = tmp_path / "there"
    plain = Workflow(wf.name, params={"n": int}, register=False)
    plain.step("last", steps.add, a=plain.step("first", steps.add, a=plain.params.n), b=10)
    broken = Workflow(wf.name, params={"n": int}, register=False)
    broken.step("last", steps.works_if, file=str(file), value=broken.params.n)
    other = Workflow(f"{wf.name}-other", params={"n": str}, register=False)
    other.step("only", steps.kind, value=other.params.n)
    fine, bad = side.finish(plain, {"n": 1}, tags=[wf.name]), side.finish(broken, {"n": 2}, tags=[wf.name])
    strange = side.finish(other, {"n": "a"}, tags=[wf.name])
    assert [side.client.get(run).state for run in (fine, bad)] == [RunState.SUCCEEDED, RunState.FAILED]
    file.touch()

    def results(runs: list[Run]) -> list[object]:
        new = [run for old in runs for run in side.client.linked(old, "rerun")]
        return [side.client.result(side.client.wait(run, timeout=60), "last") for run in new]

    bulk = side.client.bulk
    assert bulk("rerun", wf.name, dry_run=True).matched == 1
    assert bulk("rerun", wf.name, from_step="last", dry_run=True) == (2, 0, [])
    assert bulk("rerun", wf.name, from_step="last") == (2, 2, [])
    assert results([fine, bad]) == [12, 2]
    again = bulk("rerun", tags=[wf.name], status="succeeded", from_step="first", params={"n": 5})
    assert (again.matched, again.done) == (4, 2)
    assert results([fine]) == [12, 16]
    whys = dict(again.refused)
    assert "no step 'first'" in whys[strange.id]
    assert len(whys) == 2
    assert bulk("rerun", wf.name, inputs={"first": {"b": 4}}, status="failed").refused[0][0] == bad.id
    assert bulk("rerun", f"{wf.name}-other", params={"n": 7}).refused[0][0] == strange.id
    for name, change in (("from_step", "last"), ("params", {"n": 1}), ("inputs", {"last": {"b": 1}})):
        with pytest.raises(DefinitionError, match=f"{name}= says what a rerun computes again"):
            bulk("retry", wf.name, **{name: change})  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="give from_step, params or inputs"):
        bulk("rerun", wf.name, state="succeeded")


def test_status_is_another_name_of_state(side: Side, wf: Workflow) -> None:
    """In a list, a count and a bulk; under both names at once it is refused."""
    wf.step("only", steps.noop)
    run = side.finish(wf)
    client = side.client
    assert [each.id for each in client.list(wf.name, status="succeeded")] == [run.id]
    assert client.list(wf.name, status=RunState.FAILED) == []
    assert (client.count(wf.name, status="succeeded"), client.count(wf.name, status="failed")) == (1, 0)
    assert client.bulk("delete", wf.name, status="failed", dry_run=True).matched == 0
    assert client.bulk("delete", wf.name, status="succeeded", dry_run=True).matched == 1
    for ask in (client.list, client.count, lambda **given: client.bulk("delete", **given)):
        with pytest.raises(DefinitionError, match="state= and status= are two names of one condition"):
            ask(state="failed", status="failed")
        with pytest.raises(DefinitionError, match="status='over': a run is"):
            ask(status="over")


def test_a_run_is_deleted_whole_when_nobody_needs_it(side: Side, wf: Workflow) -> None:
    """Its artifacts too; one that is open, or that another one uses, is refused."""
    held_run = side.client.start(held("open"))
    with pytest.raises(StateError, match="cancel it before you delete it"):
        side.client.delete(held_run)
    side.client.cancel(held_run)
    wf.step("read", steps.reads, file=wf.step("write", steps.writes, text="abc"))
    run = side.finish(wf, tags=[wf.name])
    again = side.client.wait(side.client.rerun(run, from_step="read"), timeout=60)
    assert side.client.result(again) == {"read": "abc"}
    with pytest.raises(StateError, match=f"run {run.id} is needed by run {again.id}, which repeats it"):
        side.client.delete(run)
    for each in (again, run):
        side.client.delete(each)
        with pytest.raises(NotFound):
            side.client.get(each)
    assert side.client.list(tags=[wf.name]) == []


def test_events_and_artifacts_go_before_their_run(side: Side, wf: Workflow) -> None:
    """Each at its time; the run stays, and says what is gone."""
    write = wf.step("write", steps.writes, text="abc")
    wf.step("read", steps.reads, file=write)
    wf.step("bad", steps.fails, after=["read"])
    run = side.finish(wf)
    span = timedelta(seconds=0.3)
    side.client.retain(wf.name, events=span, artifacts=span)
    assert [each for each in side.client.retentions() if each.workflow == wf.name] == [
        (wf.name, None, span, span)
    ]

    def told() -> list[str]:
        return [
            event.kind for event in side.client.events(run) if event.kind in ("run.failed", "events.purged")
        ]

    note = Artifact.model_validate(side.client.result(run, "write"))
    side.eventually(lambda: told() == ["events.purged"] and not note.exists())
    assert side.client.get(run).state is RunState.FAILED
    with pytest.raises(ArtifactPurged, match=f"the artifacts of run {run.id} are kept for a shorter time"):
        note.read_text()
    again = side.client.wait(side.client.rerun(run, from_step="read"), timeout=60)
    assert (again.error or {})["type"] == "ArtifactPurged"
    side.client.retain(wf.name, events=None, artifacts=None)
    assert [each for each in side.client.retentions() if each.workflow == wf.name] == []


def test_runs_go_when_they_were_kept_for_long_enough(side: Side, wf: Workflow) -> None:
    """As it is said for their workflow; others stay."""
    wf.step("only", steps.noop)
    other = Workflow(f"{wf.name}-other", register=False)
    other.step("only", steps.noop)
    run, stays = side.finish(wf), side.finish(other)
    side.client.retain(wf.name, timedelta(seconds=0.3))
    assert [(each.workflow, each.keep) for each in side.client.retentions()] == [
        (wf.name, timedelta(seconds=0.3))
    ]
    side.eventually(lambda: side.client.count(wf.name) == 0)
    side.client.retain(wf.name, None)
    assert side.client.retentions() == []
    with pytest.raises(NotFound):
        side.client.get(run)
    assert side.client.get(stays).state is RunState.SUCCEEDED
    with pytest.raises(DefinitionError, match="give a span of time above 0"):
        side.client.retain(wf.name, timedelta(0))
