"""Loops of tasks and with limits: written like steps, run turn by turn (in-process)."""

from __future__ import annotations

from typing import Any

import pytest

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Context, Rate, RunState, Workflow, action
from trellis.workflows.files import dump, loads
from trellis.workflows.testing import Runner


@action(name="loops.more")
def more(previous: int, ctx: Context) -> int:
    """One more."""
    ctx.heartbeat()
    return previous + 1


def counting(**options: Any) -> Workflow:
    wf = Workflow("counts", register=False)
    wf.loop("count", more, until="result >= 3", limit=5, start=0, previous=wf.previous, **options)
    return wf


def test_a_task_of_another_application_goes_round_in_a_loop() -> None:
    """By its name; its arguments may use the result of the turn before."""
    wf = Workflow("far", register=False)
    wf.loop(
        "grow", task="media.grow", args=[wf.previous], kwargs={"turn": wf.index}, queue="media",
        until="result >= 40", limit=9, start=5,
    )  # fmt: skip
    seen: list[tuple[int, int]] = []

    def grow(value: int, turn: int) -> int:
        seen.append((value, turn))
        return value * 2

    with Runner() as client:
        client.replace_task("media.grow", grow)
        run = client.wait(client.start(wf))
        assert run.state is RunState.SUCCEEDED, run.error
        assert client.result(run) == {"grow": 40}
    assert seen == [(5, 0), (10, 1), (20, 2)]
    assert loads(dump(wf.spec)).digest() == wf.digest()


def test_a_loop_of_a_task_takes_arguments_and_no_inputs() -> None:
    wf = Workflow("far", register=False)
    with pytest.raises(
        DefinitionError, match=r"'x' is no option: task 'media.grow' takes its arguments as args="
    ):
        wf.loop("grow", task="media.grow", until="index > 1", limit=2, x=1)


def test_a_loop_needs_an_action_or_a_task() -> None:
    wf = Workflow("far", register=False)
    with pytest.raises(DefinitionError, match="needs an action, or task="):
        wf.loop("grow", until="index > 1", limit=2)


@pytest.mark.parametrize(
    "options",
    [{"concurrency_key": "k"}, {"rate": Rate("r", 2, per=1.0)}, {"queue_timeout": 5.0}, {"heartbeat": 5.0}],
    ids=["concurrency_key", "rate", "queue_timeout", "heartbeat"],
)
def test_each_turn_has_the_limits_of_its_loop(options: dict[str, Any]) -> None:
    """What a step may have, a loop may have."""
    wf = counting(**options)
    name = next(iter(options))
    assert getattr(wf.spec.steps["count"], name) == options[name]
    with Runner() as client:
        run = client.wait(client.start(wf))
        assert run.state is RunState.SUCCEEDED, run.error
        assert client.result(run) == {"count": 3}


@action(name="loops.once", effects="once")
def once(previous: int) -> int:
    """One more, once."""
    return previous + 1


def test_the_effect_of_a_turn_may_happen_once_only() -> None:
    """A turn that lost its worker in the midst of it is in doubt, and not repeated behind anyone's back."""
    wf = Workflow("charges", register=False)
    wf.loop("charge", once, until="result >= 2", limit=5, start=0, previous=wf.previous)
    with Runner() as client:
        client.crash(once, when="after")
        run = client.start(wf)
        client.advance(minutes=5)
        [doubt] = client.doubts()
        assert doubt.step == "charge[0]"
        client.resolve(run, "charge[0]", done=1)
        assert client.result(client.wait(run)) == {"charge": 2}
        assert len(client.calls(once)) == 2


def test_the_turns_of_two_runs_share_a_key() -> None:
    """One turn at a time, whichever run's it is; both end."""
    with Runner() as client:
        runs = [client.start(counting(concurrency_key="k")) for _ in range(2)]
        assert [client.wait(run).state for run in runs] == [RunState.SUCCEEDED] * 2
