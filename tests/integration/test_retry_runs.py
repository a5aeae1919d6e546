"""A run that failed or was cancelled goes on in place; its dead letters tell why it had stopped."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import steps
from stack import Stack

from trellis.tasks.errors import NotFound, StateError
from trellis.workflows import AsyncClient, Client, Default, Workflow
from trellis.workflows.states import RUN_REOPENINGS, STEP_REOPENINGS, RunState, StepState


def diamond(stack: Stack, file: Path, attempts: int = 2) -> Workflow:
    """first → (left: fails until the file is there, right) → last, and a final step beside them."""
    wf = Workflow("diamond", register=False)
    first = wf.step("first", steps.effect, ledger=stack.ledger, value=1)
    left = wf.step(
        "left", steps.works_if, file=str(file), ledger=stack.ledger, value=2, after=[first], retry=attempts
    )
    right = wf.step("right", steps.effect, ledger=stack.ledger, value=3, after=[first])
    wf.step("last", steps.total, values=[left, right, first])
    wf.step("beside", steps.effect, ledger=stack.ledger, value=4)
    return wf


def test_a_retry_runs_what_failed_and_was_cancelled_and_nothing_that_succeeded(
    stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "there"
    run = stack.client.start(diamond(stack, file)).id
    stack.drain(run)
    assert stack.client.get(run).state is RunState.FAILED
    before = stack.effects()
    file.touch()
    assert stack.client.retry(run) is True
    opened = stack.client.get(run)
    assert (opened.state, opened.error, opened.finished_at) == (RunState.RUNNING, None, None)
    stack.drain(run)
    assert stack.client.result(run)["last"] == 6
    again = stack.effects() - before
    done = {name for name, count in before.items() if count and name != "left"}
    assert not done & again.keys()
    assert {step.state for step in stack.client.steps(run)} == {StepState.SUCCEEDED}
    assert "run.retried" in {event.kind for event in stack.client.events(run)}


def test_the_budget_of_attempts_is_fresh(stack: Stack, tmp_path: Path) -> None:
    """Two attempts the first time, and two the second."""
    run = stack.client.start(diamond(stack, tmp_path / "never")).id
    stack.drain(run)
    assert stack.effects()["left"] == 2
    stack.client.retry(run)
    stack.drain(run)
    assert stack.effects()["left"] == 4
    assert stack.client.get(run).state is RunState.FAILED


def test_a_cancelled_run_goes_on_where_it_stood(stack: Stack) -> None:
    """From any moment of its life: after n claims it is cancelled, retried, and ends as it would have."""
    wf = Workflow("stops", register=False)
    numbers = wf.step("numbers", steps.numbers, n=5)
    each = wf.map("each", steps.add, over=numbers, concurrency=2, a=wf.item, b=1)
    wf.step("sum", steps.total, values=each)
    wf.step("skipped", steps.noop, when="steps.numbers[0] > 0")
    wf.step("behind", steps.noop, after=["skipped"])
    for turns in range(9):
        run = stack.client.start(wf).id
        for _ in range(turns):
            [(action, idx)] = stack.rows(
                "SELECT action, idx FROM step WHERE run_id = %s AND state = 'ready' ORDER BY idx DESC LIMIT 1", run
            ) or [("", 0)]  # fmt: skip
            if action:
                claimed = stack.engine.settings.model_copy(update={"ahead_ms": 0.0})
                stack.engine.settings = claimed
                stack.engine.run_bundle(action, run, [idx])
        if not stack.client.cancel(run):
            continue
        assert stack.client.retry(run)
        stack.drain(run)
        assert stack.client.get(run).state is RunState.SUCCEEDED, turns
        assert stack.client.result(run, "sum") == 15
        assert stack.client.result(run, "behind") is None


def test_failures_under_a_policy_and_skips_stay(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "there"
    wf = Workflow("policies", register=False)
    soft = wf.step("soft", steps.fails, on_failure=Default(7))
    wf.step("skips", steps.fails, on_failure="skip")
    wf.step("behind", steps.noop, after=["skips"])
    wf.step("hard", steps.works_if, file=str(file), value=1, after=[soft])
    run = stack.client.start(wf).id
    stack.drain(run)
    before = stack.rows("SELECT * FROM step WHERE run_id = %s AND name <> 'hard' ORDER BY idx", run)
    file.touch()
    stack.client.retry(run)
    stack.drain(run)
    assert stack.rows("SELECT * FROM step WHERE run_id = %s AND name <> 'hard' ORDER BY idx", run) == before
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_map_whose_list_item_or_gathering_failed_is_repeated_only_as_far_as_needed(
    stack: Stack, tmp_path: Path
) -> None:
    """The list fails first, then one of the items: each retry goes on from there."""
    wf = Workflow("maps", register=False)
    listed = wf.step(
        "listed", steps.works_if, file=str(tmp_path / "list"), value=[str(tmp_path / x) for x in "abcd"]
    )
    wf.map(
        "each",
        steps.works_if,
        over=listed,
        file=wf.item,
        value=wf.index,
        ledger=stack.ledger,
        concurrency=1,
    )
    run = stack.client.start(wf).id
    stack.drain(run)
    (tmp_path / "list").touch()
    for name in "abcd":
        assert stack.client.retry(run)
        stack.drain(run)
        assert stack.client.get(run).state is RunState.FAILED
        (tmp_path / name).touch()
    assert stack.client.retry(run)
    stack.drain(run)
    assert stack.client.result(run, "each") == [0, 1, 2, 3]
    assert stack.effects() == {f"each[{n}]": 2 for n in range(4)}


def test_retries_at_once_open_a_run_once(stack: Stack, tmp_path: Path) -> None:
    """Eight clients: one opens it, the others find it open, and each step runs once more."""
    file = tmp_path / "there"
    run = stack.client.start(diamond(stack, file)).id
    stack.drain(run)
    file.touch()
    before = stack.effects()["left"]
    clients = [Client(stack.settings) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda client: client.retry(run), clients))
    for client in clients:
        client.close()
    assert opened.count(True) == 1
    stack.drain(run)
    assert stack.effects()["left"] == before + 1
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_run_that_succeeded_or_does_not_exist_is_refused(stack: Stack) -> None:
    wf = Workflow("fine", register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf).id
    assert stack.client.retry(run) is False  # it is open
    stack.drain(run)
    with pytest.raises(StateError, match="succeeded.*rerun"):
        stack.client.retry(run)
    with pytest.raises(NotFound):
        stack.client.retry("01a1f80c-cf3a-7686-8674-c566556c6650")


@pytest.mark.parametrize("source", list(StepState))
def test_a_step_is_opened_as_the_table_says(stack: Stack, source: StepState) -> None:
    """The statement follows the table of reopening moves."""
    wf = Workflow("moves", register=False)
    wf.step("only", steps.noop)
    wf.step("other", steps.noop)
    run = stack.client.start(wf).id
    stack.client.cancel(run)
    stack.rows("UPDATE step SET state = %s WHERE run_id = %s AND idx = 0", source.value, run)
    stack.rows("""UPDATE run SET error = '{"step": "only"}' WHERE id = %s""", run)
    assert stack.client.retry(run)
    [(after,)] = stack.rows("SELECT state FROM step WHERE run_id = %s AND idx = 0", run)
    assert (after in STEP_REOPENINGS.get(source, ())) is (after != source.value)
    assert (source in STEP_REOPENINGS) is (after == "ready" != source.value)


@pytest.mark.parametrize("source", list(RunState))
def test_a_run_is_opened_as_the_table_says(stack: Stack, source: RunState) -> None:
    wf = Workflow("moves", register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf).id
    stack.client.cancel(run)
    stack.rows("UPDATE run SET state = %s WHERE id = %s", source.value, run)
    if source is RunState.SUCCEEDED:
        with pytest.raises(StateError):
            stack.client.retry(run)
    else:
        assert stack.client.retry(run) is (source in RUN_REOPENINGS)


def test_without_a_broker_the_next_tick_announces_what_is_open_again(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "there"
    run = stack.client.start(diamond(stack, file)).id
    stack.drain(run)
    file.touch()
    with Client(stack.settings.model_copy(update={"broker_url": None})) as client:
        assert client.retry(run)
    stack.worker()
    stack.beat()
    assert stack.client.wait(run, 30).state is RunState.SUCCEEDED


def test_a_dead_letter_is_written_with_the_failure_and_goes_with_the_retry(
    stack: Stack, tmp_path: Path
) -> None:
    """One for each step that failed its run, with reason and traceback; none for failures under a policy."""
    file = tmp_path / "there"
    wf = Workflow("dies", register=False)
    wf.step("soft", steps.fails, on_failure="skip")
    wf.step("hard", steps.works_if, file=str(file), after=["soft"], when="1 < 2")
    wf.step("bad", steps.works_if, file=str(file))
    run = stack.client.start(wf).id
    stack.drain(run)
    [letter] = stack.client.dead_letters()
    assert (letter.run, letter.workflow, letter.step, letter.action) == (run, "dies", "bad", "works_if")
    assert letter.error is not None
    assert letter.error["type"] == "FileNotFoundError"
    assert "raise FileNotFoundError" in letter.error["traceback"]
    file.touch()
    stack.client.retry(run)
    assert stack.client.dead_letters() == []
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_dead_letters_are_listed_by_workflow_time_and_page(stack: Stack) -> None:
    runs = []
    for name in ("one", "two", "one"):
        wf = Workflow(name, register=False)
        wf.step("bad", steps.fails)
        runs.append(stack.client.start(wf).id)
        stack.drain(runs[-1])
    every = stack.client.dead_letters()
    assert [letter.run for letter in every] == runs[::-1]
    assert [letter.run for letter in stack.client.dead_letters("one")] == [runs[2], runs[0]]
    assert stack.client.dead_letters(before=every[0], limit=1) == [every[1]]
    assert stack.client.dead_letters(since=every[1].at) == every[:2]
    assert stack.client.dead_letters(since=timedelta(hours=1)) == every
    assert stack.client.dead_letters_of(runs[1]) == [every[1]]


def test_a_discarded_letter_is_gone_and_its_run_can_still_be_retried(stack: Stack, tmp_path: Path) -> None:
    """Also that of a step whose name the run's error does not tell."""
    file = tmp_path / "there"
    wf = Workflow("dies", register=False)
    wf.step("bad", steps.works_if, file=str(file))
    run = stack.client.start(wf).id
    stack.drain(run)
    stack.rows("UPDATE run SET error = NULL WHERE id = %s", run)
    with pytest.raises(NotFound, match="none of this step"):
        stack.client.discard(run, "good")
    assert stack.client.discard(run, "bad") == 1
    assert stack.client.discard(run) == 0
    assert stack.client.dead_letters() == []
    assert stack.client.events(run)[-1].kind == "dead.discarded"
    file.touch()
    assert stack.client.retry(run)
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_the_client_for_asyncio_has_the_same_verbs(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "there"
    run = stack.client.start(diamond(stack, file)).id
    stack.drain(run)

    async def verbs() -> None:
        async with AsyncClient(stack.settings) as client:
            [letter] = await client.dead_letters("diamond")
            assert await client.dead_letters_of(run) == [letter]
            assert await client.discard(run) == 1
            assert await client.retry(run)

    asyncio.run(verbs())


def test_a_retry_reaches_workers_at_once(stack: Stack, tmp_path: Path) -> None:
    """No beat: the client announces what it opened."""
    file = tmp_path / "there"
    stack.worker()
    run = stack.client.start(diamond(stack, file, attempts=1)).id
    assert stack.client.wait(run, 30).state is RunState.FAILED
    file.touch()
    stack.client.retry(run)
    assert stack.client.wait(run, 30).state is RunState.SUCCEEDED
    assert stack.effects()["left"] == 2
