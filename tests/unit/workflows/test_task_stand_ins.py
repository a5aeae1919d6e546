"""Tasks of other applications in the in-process runner: stand-ins answer as their workers would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

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
