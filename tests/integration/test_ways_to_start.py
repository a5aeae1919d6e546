"""Every way to start a run takes what `client.start` takes of its beginning; and delays with limits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import steps
import typer
from stack import Stack
from typer.testing import CliRunner

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Debounce, Singleton, Workflow, cli, worker
from trellis.workflows.beginnings import of_message
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState

DEFINITION = {"name": "told", "steps": {"only": {"action": "noop"}}}


def begins(stack: Stack, run: str) -> tuple[bool, bool]:
    """Whether its first step has a time of its own, and whether it is announced."""
    [found] = stack.rows("SELECT due_at > now() + interval '1 minute', sent FROM step WHERE run_id = %s", run)
    return found  # type: ignore[return-value]


def test_one_action_takes_them(stack: Stack) -> None:
    """`submit` is a start."""
    first = stack.client.submit(
        steps.noop, delay=3600, singleton="k", tenant="acme", deadline=7200, tags=["x"]
    )
    assert begins(stack, first.id) == (True, False)
    assert stack.client.submit(steps.noop, singleton="k").id == first.id
    both = [stack.client.submit(steps.add, {"a": n}, debounce=Debounce("d", 3600)) for n in (1, 2)]
    assert both[0].id == both[1].id
    [(tenant, deadline)] = stack.rows(
        "SELECT tenant, deadline_at IS NOT NULL FROM run WHERE id = %s", first.id
    )
    assert (tenant, deadline) == ("acme", True)


def test_a_message_takes_them(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task `trellis.start`, with what JSON can say; twice delivered it is one run, whatever names it."""
    monkeypatch.setattr(worker, "_client", lambda: stack.client)

    def sent(message: str, **options: Any) -> str:
        about = {"workflow": DEFINITION, **options}
        return str(worker.start.apply(kwargs=about, task_id=message, throw=True).get())

    plain = sent("m1", tags=["x"])
    assert sent("m1") == plain
    assert stack.client.get(plain).tags == ("x",)
    late = sent("m2", at="2100-01-01T00:00:00+00:00", tenant="acme")
    assert begins(stack, late) == (True, False)
    one = sent("m3", singleton="k", delay=3600)
    assert sent("m4", singleton={"key": "k", "window": 5}) == one
    once = sent("m5", debounce={"key": "d", "wait": 3600})
    assert sent("m6", debounce={"key": "d", "wait": 3600, "max_wait": 7200}) == once
    assert len({plain, late, one, once}) == 4
    with pytest.raises(DefinitionError, match="there is no option 'delai'; did you mean 'delay'"):
        sent("m7", delai=3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"at": "tomorrow"}, "at='tomorrow' is no moment in ISO 8601"),
        ({"debounce": {"key": "k"}}, "is not an object with key, wait, max_wait"),
        ({"singleton": {"name": "k"}}, "is not an object with key, window"),
        ({"debounce": {"key": "k", "wait": -1}}, "wait -1 is not"),
        ({"connection": "x"}, "there is no option 'connection'"),
    ],
    ids=range(5),
)
def test_what_a_message_says_wrongly_is_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        of_message(options)
    assert told in str(caught.value)


def test_what_a_message_says_is_what_a_client_takes() -> None:
    assert of_message({"at": "2026-01-01T00:00:00+00:00", "delay": None}) == {
        "at": datetime(2026, 1, 1, tzinfo=UTC)
    }
    assert of_message({"debounce": {"key": "k", "wait": 1}}) == {"debounce": Debounce("k", 1)}
    assert of_message({"singleton": {"key": "k", "window": 1}}) == {"singleton": Singleton("k", 1)}
    assert of_message({"singleton": "k", "delay": 3.0}) == {"singleton": "k", "delay": 3.0}


def test_the_command_takes_them(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """`trellis run --debounce`: the same run again, which has not begun."""
    monkeypatch.setenv("TRELLIS_DATABASE_URL", stack.database_url)
    monkeypatch.setenv("TRELLIS_BROKER_URL", stack.broker_url)
    app = typer.Typer()
    cli.register(app)
    file = tmp_path / "told.yaml"
    file.write_text("name: told\nsteps: {only: {action: noop}}\n")
    given = [
        "run",
        str(file),
        "--debounce",
        "k",
        "--debounce-wait",
        "3600",
        "--debounce-max",
        "7200",
        "--tenant",
        "acme",
        "--deadline",
        "9000",
    ]
    first, second = (CliRunner().invoke(app, given) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    runs = stack.client.list()
    assert len(runs) == 1
    assert runs[0].id in first.stdout
    assert runs[0].id in second.stdout
    assert begins(stack, runs[0].id)[0]
    wrong = CliRunner().invoke(app, [*given, "--singleton", "k"])
    assert isinstance(wrong.exception, DefinitionError)
    stack.rows("UPDATE run SET created_at = created_at - interval '7190 seconds'")
    assert CliRunner().invoke(app, given).stdout.strip() == runs[0].id
    [[left]] = stack.rows(
        "SELECT due_at < now() + interval '11 seconds' FROM step"
    )  # its longest wait is over then
    assert left
    single = ["run", str(file), "--singleton", "k"]
    first = CliRunner().invoke(app, single).stdout.strip()
    stack.client.cancel(first)
    assert CliRunner().invoke(app, [*single, "--singleton-window", "3600"]).stdout.strip() == first
    assert CliRunner().invoke(app, single).stdout.strip() != first
    for alone, missing in (("--singleton-window", "--singleton"), ("--debounce-max", "--debounce")):
        refused = CliRunner().invoke(app, ["run", str(file), alone, "9"])
        assert f"{alone} goes with {missing}" in str(refused.exception)


def test_a_delayed_run_with_limits_waits_for_its_time_and_then_for_its_turn(stack: Stack) -> None:
    """Until its time it stands in no line and holds nothing; then it is let in like others."""
    wf = Workflow("later", concurrency_key="one", register=False)
    for name in ("a", "b"):
        wf.step(name, steps.noop, concurrency_key="k")
    late = stack.client.start(wf, delay=3600).id
    tick(stack.engine)
    assert stack.rows("SELECT DISTINCT state, waits_for FROM step") == [("parked", "start")]
    soon = stack.client.start(wf).id
    assert stack.rows("SELECT DISTINCT run_id::text FROM permit") == [(soon,)]
    stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s", late)
    tick(stack.engine)
    lines = "SELECT name, waits_for FROM step WHERE run_id = %s ORDER BY idx"
    assert stack.rows(lines, late) == [("a", "gate:runs:one"), ("b", f"entry:{late}")]
    stack.drain(soon)
    assert stack.rows(lines, late) == [("a", None), ("b", "gate:key:k")]
    stack.drain(late)
    assert [stack.client.get(run).state for run in (soon, late)] == [RunState.SUCCEEDED] * 2
    assert stack.rows("SELECT * FROM permit") == []
