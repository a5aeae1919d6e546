"""Tasks of other applications in the in-process runner: stand-ins answer as their workers would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import steps
from celery import group, signature
from celery.canvas import Signature

from trellis.tasks.errors import RunFailed
from trellis.workflows import Retry, Workflow
from trellis.workflows.testing import Runner


@pytest.fixture
def client() -> Iterator[Runner]:
    with Runner() as found:
        yield found


def flow(**options: Any) -> Workflow:
    wf = Workflow("stand-ins", register=False)
    wf.step("resize", task="media.resize", args=[1], kwargs={"b": 2}, queue="media", **options)
    return wf


def test_a_stand_in_answers_with_what_it_returns(client: Runner) -> None:
    client.replace_task("media.resize", lambda a, b: [a, b])
    assert client.result(client.wait(client.start(flow()))) == {"resize": [1, 2]}


def test_what_it_raises_is_answered_by_the_steps_policy(client: Runner) -> None:
    calls: list[int] = []

    def breaks(a: int, b: int) -> None:
        calls.append(a)
        raise ValueError("broken")

    client.replace_task("media.resize", breaks)
    run = client.wait(client.start(flow(retry=Retry(attempts=3))))
    assert run.error is not None
    assert (run.error["type"], run.error["message"], len(calls)) == ("ValueError", "broken", 3)


def test_a_result_that_is_no_json_fails_once(client: Runner) -> None:
    client.replace_task("media.resize", lambda a, b: object())
    run = client.wait(client.start(flow(retry=3)))
    assert run.error is not None
    assert run.error["type"] == "OutputError"


def test_without_a_stand_in_the_step_says_so(client: Runner) -> None:
    with pytest.raises(
        RunFailed, match="NotInProcess: .*task 'media.resize' of another application without a stand-in"
    ):
        client.result(client.wait(client.start(flow())))


def test_a_failed_run_takes_its_tasks_back(client: Runner) -> None:
    """Which waits for nobody here, and fails nothing."""
    wf = flow()
    wf.wait_for("never", "never")
    client.replace_task("media.resize", lambda a, b: None)
    run = client.start(wf)
    client.cancel(run)
    assert client.get(run).state == "cancelled"


def test_what_is_sent_at_the_end_of_a_run_leaves_the_process_nowhere(client: Runner) -> None:
    """It is kept for the test; a chain goes on behind a stand-in, and ends where there is none."""
    heard = []
    wf = Workflow("told", register=False)
    wf.step("sum", steps.add, a=1)

    def task(name: str, *args: int) -> Signature:
        return signature(f"media.{name}", args=args, queue="media")

    client.replace_task("media.first", lambda outcome: heard.append(outcome) or 7)  # type: ignore[func-returns-value]
    client.start(wf, on_success=[task("first") | task("second", 1) | task("third"), task("alone")])
    assert heard == [{"sum": 2}]
    outcome = {"sum": 2}
    assert [(each.task, each.args, each.queue) for each in client.sent] == [
        ("media.first", (outcome,), "media"), ("media.second", (7, 1), "media"), ("media.alone", (outcome,), "media"),
    ]  # fmt: skip


def test_a_stand_in_gets_the_tasks_of_a_group(client: Runner) -> None:
    """Each of them."""
    client.replace(steps.hears, lambda outcome: None)
    wf = Workflow("told", register=False)
    wf.wait_for("never", "never")
    run = client.start(wf, on_failure=group(steps.hears.s(ledger="x"), steps.hears.s(ledger="y")))
    client.cancel(run)
    assert [(each.args[0]["state"], each.kwargs) for each in client.sent] == [
        ("cancelled", {"ledger": "x"}), ("cancelled", {"ledger": "y"}),
    ]  # fmt: skip
    assert len(client.calls(steps.hears)) == 2


def test_a_transaction_of_a_body_is_refused(client: Runner) -> None:
    """There is no database that reads its SQL; the step fails with that, and a stand-in helps."""
    wf = Workflow("books", register=False)
    wf.step("book", steps.books, ledger="x", where="")
    with pytest.raises(RunFailed, match=r"NotInProcess: not available in-process: ctx\.transaction\(\)"):
        client.result(client.start(wf))
    client.replace(steps.books, lambda: "booked")
    assert client.result(client.start(wf)) == {"book": "booked"}
