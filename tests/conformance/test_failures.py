"""Attempts, limits and crashes are counted alike on the engine and in-process."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import steps
from sides import Side

from trellis.tasks.errors import RunFailed
from trellis.workflows import Default, Retry, RunState, Workflow


def test_retries_follow_the_policy_and_leave_events(side: Side, wf: Workflow) -> None:
    """A step is tried as often as its policy says, each failure is kept."""
    wf.step("third", steps.fails_until, ledger=side.ledger, attempt=3)
    run = side.finish(wf)
    assert side.client.result(run, "third") == 3
    told = [
        (event.kind, event.attempt, event.detail["message"], event.detail["delay"])
        for event in side.client.events(run)
        if event.detail is not None
    ]
    assert told == [("step.retry", 1, "attempt 1", 0.05), ("step.retry", 2, "attempt 2", 0.1)]
    [step] = side.client.steps(run)
    assert (step.attempt, step.failures, side.effects()) == (3, 2, {"third": 3})


def test_a_delay_is_kept(side: Side, wf: Workflow) -> None:
    """The next attempt begins no earlier than its policy says."""
    wf.step("third", steps.fails_until, ledger=side.ledger, attempt=2, retry=Retry(2, base=0.5, jitter=0))
    run = side.finish(wf)
    retry, started = (
        next(event for event in side.client.events(run) if event.kind == kind)
        for kind in ("step.retry", "step.started")
    )
    assert (started.at - retry.at).total_seconds() >= 0.49


def test_the_last_attempt_is_the_last(side: Side, wf: Workflow) -> None:
    """A policy that is used up ends the step with the last error."""
    wf.step("never", steps.fails_until, ledger=side.ledger, attempt=9, retry=Retry(3, base=0, jitter=0))
    run = side.finish(wf)
    with pytest.raises(RunFailed, match="step 'never': ConnectionError: attempt 3"):
        side.client.result(run)
    assert side.effects() == {"never": 3}
    assert [e.kind for e in side.client.events(run) if e.detail] == [
        "step.retry", "step.retry", "step.failed", "run.failed",
    ]  # fmt: skip


def test_wrong_inputs_fail_at_once_and_name_the_input(side: Side, wf: Workflow) -> None:
    """What cannot become right is not tried again."""
    text = wf.step("text", steps.returns, value="seven")
    wf.step("sum", steps.add, a=text, retry=Retry(5, base=0))
    run = side.finish(wf)
    with pytest.raises(RunFailed, match=r"step 'sum': InputError: action 'add'.* a: "):
        side.client.result(run)
    assert side.client.steps(run)[1].attempt == 1


def test_a_path_that_a_result_does_not_have_names_the_step(side: Side, wf: Workflow) -> None:
    """`steps.value` has no such field at run time: the message says which step and which field."""
    value = wf.step("value", steps.returns, value={"rows": 1})
    wf.step("sum", steps.add, a=value["row"])
    with pytest.raises(RunFailed, match=r"step 'sum': InputError: .*step 'value'.*'?row'?"):
        side.client.result(side.finish(wf))


@pytest.mark.parametrize(
    ("action", "inputs", "message"),
    [
        ("odd", {"kind": "nan"}, "OutputError: .*nan"),
        ("odd", {"kind": "nul"}, "OutputError: .*NUL"),
        ("odd", {"kind": "surrogate"}, "OutputError: .*surrogate"),
        ("huge", {"digits": 5000}, "OutputError: .*more than 4000 digits"),
        ("big", {"size": 1_100_000}, r"ValueTooLarge: the result of step 'odd' is 1,100,002 bytes.*ctx\.artifact"),
        ("exits", {"code": 3}, r"ExecutionError: the body called sys\.exit\(3\)"),
        ("speechless", {}, "Unspeakable"),
        ("beats", {"progress": "x" * 20_000}, "ValueError: .*at most 16,384 bytes"),
        ("reads", {"file": {"uri": "file:///nowhere/at/all"}}, "FileNotFoundError"),
    ],
)  # fmt: skip
def test_odd_bodies_fail_like_any_other(
    side: Side, wf: Workflow, action: str, inputs: dict[str, Any], message: str
) -> None:
    """Whatever a body does, its step has an outcome, and its neighbours have theirs."""
    wf.step("odd", action, inputs=inputs, on_failure="skip")
    wf.step("good", steps.noop)
    run = side.finish(wf)
    assert side.states(run) == {"odd": "failed", "good": "succeeded"}
    with pytest.raises(RunFailed, match=message):
        side.client.result(run, "odd")


def test_a_gathered_list_over_the_cap_names_the_map(side: Side, wf: Workflow) -> None:
    """The sum counts, not only its parts."""
    wf.map("parts", steps.big, over=list(range(12)), size=100_000)
    with pytest.raises(RunFailed, match=r"the list of results of step 'parts' is 1,200,048 bytes"):
        side.client.result(side.finish(wf))


def test_a_body_past_its_timeout_fails(side: Side, wf: Workflow) -> None:
    """With its limit in the message; its policy decides what follows."""
    wf.step(
        "naps",
        steps.naps,
        ledger=side.ledger,
        timeout=0.2,
        retry=Retry(2, base=0, jitter=0),
        on_failure=Default(1),
    )
    run = side.finish(wf)
    assert side.client.result(run) == {"naps": 1}
    [step] = side.client.steps(run)
    assert (step.attempt, step.failures, side.effects()) == (2, 2, {"naps": 2})
    assert step.error is not None
    assert (step.error["type"], step.error["message"]) == (
        "StepTimeout", "the step ran longer than its timeout of 0.2 s",
    )  # fmt: skip


def test_a_crash_uses_up_no_attempt_of_the_policy(side: Side) -> None:
    """The worker vanishes in the body: the step runs again, whatever its retries. One that takes each worker down is
    given up after TRELLIS_MAX_CRASHES new attempts, as a failure like any other.
    """
    run, folder = side.crashing("lost")
    run = side.client.wait(run, timeout=60)
    bodies = Counter(line.split()[1] for line in (folder / "ledger").read_text().splitlines())
    assert (run.state, bodies) == (RunState.FAILED, {"once": 2, "always": 2})
    assert side.client.result(run, "behind") == 3
    step = side.client.steps(run)[0]
    assert (step.attempt, step.failures) == (2, 0)
    assert [
        (e.kind, e.attempt, e.detail["type"])
        for e in side.client.events(run)
        if e.detail and e.step == "once"
    ] == [("step.retry", 1, "WorkerLost")]
    with pytest.raises(RunFailed, match="step 'always': WorkerLost: 2 workers in a row fell silent"):
        side.client.result(run)
