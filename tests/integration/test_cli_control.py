"""The commands that control runs: what they print, and how they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import steps
import typer
from click.testing import Result
from stack import Stack
from typer.testing import CliRunner

from trellis.workflows import Workflow, cli
from trellis.workflows.states import RunState

Trellis = Callable[..., Result]


@pytest.fixture
def trellis(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Trellis:
    """The command, in this process."""
    monkeypatch.setenv("TRELLIS_DATABASE_URL", stack.database_url)
    monkeypatch.setenv("TRELLIS_BROKER_URL", stack.broker_url)
    app = typer.Typer()
    cli.register(app)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def failed(stack: Stack, file: Path, tag: str = "x") -> str:
    wf = Workflow("flow", params={"n": int}, register=False)
    first = wf.step("first", steps.add, a=wf.params.n)
    wf.step("bad", steps.works_if, file=str(file), value=first)
    run = stack.client.start(wf, {"n": 1}, tags=[tag]).id
    stack.drain(run)
    return run


def test_retry_and_dead_letters(stack: Stack, trellis: Trellis, tmp_path: Path) -> None:
    file = tmp_path / "there"
    run = failed(stack, file)
    shown = trellis("dead", "list", "--workflow", "flow", "--since", "1h")
    assert shown.exit_code == 0
    assert "FileNotFoundError: no there yet" in shown.stdout
    assert json.loads(trellis("dead", "list", "--json").stdout)[0]["run"] == run
    shown = trellis("dead", "show", run[:13])
    assert "raise FileNotFoundError" in shown.stdout
    assert f"trellis dead replay {run}" in shown.stdout
    file.touch()
    again = trellis("retry", run)
    assert (again.exit_code, again.stdout) == (0, f"{run} retried\n")
    again = trellis("dead", "replay", run)
    assert again.exit_code == 1
    assert "is open already" in again.stderr
    stack.drain(run)
    again = trellis("retry", run)
    assert again.exit_code == 1
    assert "succeeded" in again.stderr
    assert trellis("dead", "show", run).exit_code != 0
    assert trellis("dead", "discard", run).exit_code == 1
    assert "no dead letters" in trellis("dead", "list").stderr


def test_the_dead_letter_of_one_step_is_discarded(stack: Stack, trellis: Trellis) -> None:
    """The others stay; a run without it is named, and the exit is 1."""
    wf = Workflow("two", register=False)
    for name in ("a", "b"):
        wf.step(name, steps.fails)
    run = stack.client.start(wf).id
    stack.drain(run)
    letters = {each.step for each in stack.client.dead_letters_of(run)}
    step = letters.pop()
    stack.rows(
        'INSERT INTO dead_letter SELECT (jsonb_populate_record(l, \'{"idx": 7, "step": "c"}\')).* FROM dead_letter l'
    )
    other = stack.client.start(one_step("fine")).id
    done = trellis("dead", "discard", other, run, "--step", step)
    assert (done.exit_code, done.stdout) == (1, f"{run} 1 dead letter discarded\n")
    assert f"run {other} has none of this step" in done.stderr
    assert {each.step for each in stack.client.dead_letters_of(run)} == {"c"}
    assert trellis("dead", "discard", run, "--step", "c").exit_code == 0
    assert stack.client.dead_letters() == []


def test_rerun(stack: Stack, trellis: Trellis, tmp_path: Path) -> None:
    file = tmp_path / "there"
    run = failed(stack, file)
    file.touch()
    new = trellis("rerun", run, "--param", "n=4").stdout.strip()
    stack.drain(new)
    assert stack.client.result(new, "bad") == 5
    new = trellis("rerun", run, "--from", "first", "-i", "first.b=10", "--json")
    new_id = json.loads(new.stdout)["id"]
    stack.drain(new_id)
    assert stack.client.result(new_id, "bad") == 11
    for arguments, problem in (
        (("--from", "gone"), "no step 'gone'"),
        (("-p", "n=many"), "'n'"),
        (("-i", "first"), "STEP.INPUT=VALUE"),
    ):
        refused = trellis("rerun", run, *arguments)
        assert refused.exit_code != 0
        assert problem in str(refused.exception)


def test_pause_and_resume(stack: Stack, trellis: Trellis) -> None:
    wf = Workflow("flow", register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf).id
    assert trellis("pause", run).stdout == f"{run} paused\n"
    again = trellis("pause", run)
    assert (again.exit_code, "paused already" in again.stderr) == (1, True)
    assert trellis("resume", run).stdout == f"{run} resumed\n"
    assert trellis("pause", "--workflow", "flow", "--queue", "slow").stdout == (
        "workflow flow paused\nqueue slow paused\n"
    )
    assert [line.split(" paused")[0] for line in trellis("pause").stdout.splitlines()] == [
        "queue slow", "workflow flow"]  # fmt: skip
    refused = trellis("resume", run)
    assert (refused.exit_code, "resume the workflow" in refused.stderr) == (1, True)
    assert trellis("resume", "--workflow", "flow", "--queue", "slow").exit_code == 0
    late = trellis("resume", "--queue", "slow")
    assert (late.exit_code, "not paused" in late.stderr) == (1, True)
    assert trellis("resume").exit_code != 0
    assert stack.client.get(run).state is RunState.PENDING


def test_one_verb_for_many(stack: Stack, trellis: Trellis, tmp_path: Path) -> None:
    """Counted first; nothing happens to them unless somebody says yes."""
    file = tmp_path / "there"
    runs = [failed(stack, file) for _ in range(3)]
    failed(stack, file, tag="y")
    asked = ("runs", "--workflow", "flow", "--status", "failed", "--since", "1d", "--tag", "x")
    assert len(json.loads(trellis(*asked, "--json").stdout)) == 3
    assert trellis(*asked, "retry", "--dry-run").stdout == "3 runs would be retried\n"
    refused = trellis(*asked, "retry")
    assert refused.exit_code != 0
    assert "--yes" in str(refused.exception)
    assert {stack.client.get(run).state for run in runs} == {RunState.FAILED}
    done = trellis(*asked, "retry", "--yes")
    assert (done.exit_code, done.stdout) == (0, "3 runs retried\n")
    found = json.loads(trellis("runs", "--tag", "x", "cancel", "--yes", "--json").stdout)
    assert found == {"matched": 3, "done": 3, "refused": []}
    assert trellis("runs", "--tag", "x", "delete", "--yes").stdout == "3 runs deleted\n"
    assert stack.client.count() == 1
    assert "all runs there are" in str(trellis("runs", "cancel", "--yes").exception)
    assert "neither a span of time" in str(trellis("runs", "--since", "yesterday", "cancel").exception)


def test_many_are_repeated_with_changes(stack: Stack, trellis: Trellis, tmp_path: Path) -> None:
    """The options of a rerun, read as the runs take them; what refuses is named, and another verb takes none."""
    file = tmp_path / "there"
    bad = failed(stack, file)
    file.touch()
    good = failed(stack, file)
    assert stack.client.get(good).state is RunState.SUCCEEDED
    asked = ("runs", "--workflow", "flow")
    assert trellis(*asked, "rerun", "--dry-run").stdout == "1 run would be rerun\n"
    changed = ("rerun", "--from", "first", "-p", "n=4", "-i", "first.b=10", "--yes")
    assert trellis(*asked, *changed, "--dry-run").stdout == "2 runs would be rerun\n"
    done = trellis(*asked, *changed)
    assert (done.exit_code, done.stdout) == (0, "2 runs rerun\n")
    for old in (bad, good):
        [new] = stack.client.linked(old, "rerun")
        stack.drain(new.id)
        assert stack.client.result(new, "bad") == 14
    refused = trellis(*asked, "--status", "failed", "rerun", "--from", "gone", "--yes")
    assert (refused.exit_code, refused.stdout) == (1, "0 runs rerun\n")
    assert "no step 'gone'" in refused.stderr
    assert "'n'" in str(trellis(*asked, "rerun", "-p", "n", "--yes").exception)
    for arguments, name in (
        (("retry", "--from", "first", "--yes"), "--from"),
        (("cancel", "-p", "n=1", "--yes"), "--param"),
        (("-i", "first.b=1"), "--input"),
    ):
        assert f"{name} says what a rerun computes again" in str(trellis(*asked, *arguments).exception)


def test_retention_and_check(stack: Stack, trellis: Trellis) -> None:
    assert trellis("retention", "set", "flow", "12h").stdout == "runs of flow are kept: 12h\n"
    trellis("retention", "set", "always", "forever")
    assert trellis("retention", "list").stdout.splitlines() == [
        "all others: forever (TRELLIS_RETENTION_DAYS)", "always: forever", "flow: 12h"]  # fmt: skip
    trellis("retention", "set", "always", "default")
    assert "always" not in trellis("retention", "list").stdout
    assert trellis("retention", "set", "flow", "soon").exit_code != 0
    shown = trellis("retention", "set", "flow", "--events", "2h", "--artifacts", "1h")
    assert shown.stdout == "events of flow are kept: 2h\nartifacts of flow are kept: 1h\n"
    trellis("retention", "set", "other", "--artifacts", "1d")
    assert trellis("retention", "list").stdout.splitlines()[1:] == [
        "flow: 12h, events 2h, artifacts 1h", "other: default, artifacts 1d"]  # fmt: skip
    trellis("retention", "set", "flow", "--events", "default")
    assert "flow: 12h, artifacts 1h" in trellis("retention", "list").stdout
    assert "say how long" in str(trellis("retention", "set", "flow").exception)
    assert trellis("check").stdout == "this code fits the open runs (0 definitions)\n"


def test_a_slip_in_a_name_is_told(stack: Stack, trellis: Trellis) -> None:
    """What is done to a workflow that nobody knows is done to nothing."""
    stack.client.start(one_step("nightly"))
    meant = "did you mean 'nightly'?"
    for command in (
        ("pause", "--workflow", "nigthly"),
        ("retention", "set", "nigthly", "1d"),
        ("runs", "--workflow", "nigthly", "cancel", "--dry-run"),
        ("runs", "--workflow", "nigthly"),
    ):
        shown = trellis(*command)
        assert (shown.exit_code, meant in shown.stderr) == (0, True), shown.output
    for command in (("pause", "--workflow", "nightly"), ("retention", "set", "nightly", "1d")):
        assert trellis(*command).stderr == ""
    shown = trellis("runs", "--workflow", "nightly", "--status", "failed", "--tag", "x", "--since", "1d")
    assert shown.stderr == "no runs of workflow 'nightly' that are failed with tag 'x' since 1d\n"


def test_steps_in_doubt_are_listed_and_resolved(stack: Stack, trellis: Trellis) -> None:
    run = stack.client.start(one_step("pays")).id
    assert trellis("doubts").stderr == "nothing is in doubt\n"
    stack.rows(
        "UPDATE step SET state = 'parked', waits_for = 'doubt', intent = 1, due_at = 'infinity', "
        'wait = \'{"doubt": 1, "worker": "box/7"}\' WHERE run_id = %s',
        run,
    )
    shown = trellis("doubts", run[:13])
    assert "a person has to say" in shown.stdout
    assert "--done JSON | --retry | --fail TEXT" in shown.stderr
    [found] = json.loads(trellis("doubts", "--json").stdout)
    assert (found["run"], found["attempt"], found["worker"]) == (run, 1, "box/7")
    assert "in doubt" in trellis("why", run).stdout
    for wrong in ((), ("--retry", "--fail", "no"), ("--retry", "--done", "1")):
        assert "one of --done JSON, --retry and --fail TEXT" in str(
            trellis("resolve", run, "only", *wrong).exception
        )
    assert trellis("resolve", run, "only", "--retry", "--by", "me").stdout == "only runs again\n"
    assert json.loads(trellis("doubts", "--json").stdout) == []
    assert "is not in doubt" in str(trellis("resolve", run, "only", "--retry").exception)


def one_step(name: str) -> Workflow:
    wf = Workflow(name, register=False)
    wf.step("only", steps.noop)
    return wf
