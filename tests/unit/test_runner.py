"""The in-process runner: what it offers beyond a client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import pytest
import steps

from trellis.tasks.errors import ConfigurationError, DefinitionError, RunFailed, WaitTimeout
from trellis.workflows import Context, Retry, RunState, Workflow
from trellis.workflows.testing import NotInProcess, Runner, Stalled, WorkerCrash

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def runner() -> Iterator[Runner]:
    with Runner(now=NOW) as each:
        yield each


def one(action: object, **options: object) -> Workflow:
    """A workflow of one step."""
    wf = Workflow("one", register=False)
    wf.step("only", action, **options)  # type: ignore[arg-type]
    return wf


def test_whatever_can_happen_has_happened_when_a_method_returns(runner: Runner) -> None:
    """No waiting, no polling: the answer of `start` is the run as it was accepted, the next look sees its end."""
    run = runner.start(one(steps.add, a=1))
    assert (run.state, runner.get(run).state, runner.result(run)) == ("pending", "succeeded", {"only": 2})


def test_time_moves_only_by_hand_and_is_the_same_each_time() -> None:
    """Two runners that do the same have the same times in all they tell."""
    stories = []
    for _ in range(2):
        with Runner(now=NOW) as runner:
            run = runner.start(one(steps.fails, retry=Retry(3, base=60, jitter=0)))
            assert runner.now - NOW < timedelta(seconds=1)
            runner.advance(hours=1)
            assert timedelta(hours=1) <= runner.now - NOW < timedelta(hours=1, seconds=1)
            stories.append([(event.at, event.kind, event.attempt) for event in runner.events(run)])
    assert stories[0] == stories[1]
    minutes = [(at - NOW) // timedelta(minutes=1) for at, kind, _ in stories[0] if kind == "step.retry"]
    assert minutes == [0, 1]


def test_time_passes_moment_by_moment(runner: Runner) -> None:
    """What is due on the way happens when it is due, and not at the end of the way."""
    run = runner.start(one(steps.fails, retry=Retry(4, base=60, backoff="constant", jitter=0)))
    runner.advance(days=1)
    times = [event.at for event in runner.events(run) if event.kind in ("step.retry", "step.failed")]
    assert [(at - NOW) // timedelta(minutes=1) for at in times] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="time does not go back"):
        runner.advance(seconds=-1)


def test_wait_moves_the_time_as_far_as_it_takes(runner: Runner) -> None:
    """And not further; with a timeout no further than that."""
    wf = one(steps.fails, retry=Retry(2, base=300, jitter=0))
    with pytest.raises(WaitTimeout, match="is still running after 10 s; it goes on"):
        runner.wait(runner.start(wf), timeout=10)
    assert timedelta(seconds=10) <= runner.now - NOW < timedelta(seconds=11)
    begin = runner.now
    assert runner.wait(runner.start(wf)).state is RunState.FAILED
    assert timedelta(seconds=300) <= runner.now - begin < timedelta(seconds=301)


def test_a_wait_for_nothing_is_an_error_and_not_for_ever(runner: Runner) -> None:
    """It names the steps that are open."""
    with runner.without_workers(), pytest.raises(Stalled, match="does not end by itself: 'only' ready"):
        runner.wait(runner.start(one(steps.noop)))


def test_a_stand_in_takes_the_place_of_a_body(runner: Runner) -> None:
    """It gets the inputs that it names, as the types that the action declares, and the context if it asks."""
    seen = []

    def stand_in(a: int, ctx: Context) -> int:
        seen.append((a, ctx.step, ctx.attempt))
        return 40 + a

    runner.replace(steps.add, stand_in)
    assert runner.result(runner.start(one(steps.add, a=2, b=5))) == {"only": 42}
    assert seen == [(2, "only", 1)]
    assert runner.calls("add") == [{"a": 2, "b": 5}]


def test_a_mock_is_a_stand_in(runner: Runner) -> None:
    """It takes all inputs."""
    body = Mock(return_value=7)
    runner.replace("add", body)
    assert runner.result(runner.start(one(steps.add, a=2))) == {"only": 7}
    body.assert_called_once_with(a=2)


def test_a_stand_in_is_held_to_the_contract_of_its_action(runner: Runner) -> None:
    """A result that the action does not declare fails the step, as it would for the action itself."""
    runner.replace(steps.add, lambda a: "seven")
    with pytest.raises(RunFailed, match="OutputError: action 'add'"):
        runner.result(runner.start(one(steps.add, a=2)))


def test_a_stand_in_that_cannot_fit_is_refused(runner: Runner) -> None:
    """At once, with the name that is wrong."""
    with pytest.raises(DefinitionError, match="asks for 'price', which is no input of it .*'a'"):
        runner.replace(steps.add, lambda price: 1)
    with pytest.raises(DefinitionError, match="there is no action 'ad'"):
        runner.replace("ad", lambda: 1)


def test_coroutines_and_their_stand_ins_run_inside_a_running_loop_too(runner: Runner) -> None:
    """A test may be a coroutine itself."""

    async def stand_in(a: int) -> int:
        await asyncio.sleep(0)
        return a

    async def both() -> list[object]:
        first = runner.result(runner.start(one(steps.async_add, a=1, b=2)))
        runner.replace(steps.async_add, stand_in)
        return [first, runner.result(runner.start(one(steps.async_add, a=1, b=2)))]

    assert asyncio.run(both()) == [{"only": 3}, {"only": 1}]


def test_failures_are_put_in(runner: Runner) -> None:
    """So many calls fail, and the body does not run in them."""
    runner.fail(steps.add, ConnectionError("down"), times=2)
    run = runner.start(one(steps.add, a=1, retry=Retry(3, base=1, jitter=0)))
    assert runner.wait(run).state is RunState.SUCCEEDED
    assert [event.detail["message"] for event in runner.events(run) if event.detail] == ["down", "down"]
    runner.fail(steps.add, TimeoutError)
    with pytest.raises(RunFailed, match="TimeoutError"):
        runner.result(runner.start(one(steps.add, a=1)))


@pytest.mark.parametrize(("when", "effects"), [("before", 1), ("after", 2)])
def test_crashes_are_put_in(runner: Runner, when: str, effects: int) -> None:
    """Before the body or behind it; the step is taken up again once its lease has run out twice."""
    done = []
    runner.replace(steps.add, lambda a: done.append(a) or a)  # type: ignore[func-returns-value]
    runner.crash(steps.add, when=when)  # type: ignore[arg-type]
    run = runner.start(one(steps.add, a=1))
    assert runner.get(run).state is RunState.RUNNING
    runner.advance(seconds=29)
    assert runner.get(run).state is RunState.RUNNING
    runner.advance(seconds=2)
    assert (runner.get(run).state, len(done)) == (RunState.SUCCEEDED, effects)


def test_a_stand_in_may_crash_in_its_midst(runner: Runner) -> None:
    """At the line that the test wants."""
    done = []

    def stand_in(ctx: Context) -> None:
        done.append(ctx.idempotency_key)
        if ctx.attempt == 1:
            raise WorkerCrash

    runner.replace(steps.noop, stand_in)
    run = runner.start(one(steps.noop))
    runner.advance(minutes=1)
    assert done == [f"{run.id}/only"] * 2


def test_a_body_that_takes_its_time_meets_its_timeout(runner: Runner) -> None:
    """`advance` inside a body is the time that it takes; past the limit StepTimeout is raised in it."""
    caught = []

    def slow(seconds: float) -> None:
        try:
            runner.advance(seconds=seconds)
        except Exception as error:
            caught.append(type(error).__name__)
            raise

    runner.replace(steps.noop, lambda: slow(50))
    run = runner.start(one(steps.noop, timeout=60))
    assert runner.steps(run)[0].seconds == pytest.approx(50, abs=1)
    runner.replace(steps.noop, lambda: slow(70))
    with pytest.raises(RunFailed, match="StepTimeout: the step ran longer than its timeout of 60 s"):
        runner.result(runner.start(one(steps.noop, timeout=60)))
    assert caught == ["StepTimeout"]


def test_a_body_that_takes_its_time_says_that_it_is_alive(runner: Runner) -> None:
    """Time moves by `advance`; between two signs of life no more of it than the step's heartbeat."""

    def body(ctx: Context) -> None:
        for _ in range(5):
            runner.advance(seconds=2)
            ctx.heartbeat()
        runner.advance(seconds=silence)

    runner.replace(steps.beats, body)
    silence = 2
    lively = one(steps.beats, heartbeat=3, progress=None)
    assert runner.wait(runner.start(lively)).state is RunState.SUCCEEDED
    silence, begin = 4, runner.now
    with pytest.raises(
        RunFailed, match="HeartbeatTimeout: the body was silent for longer than its heartbeat of 3 s"
    ):
        runner.result(runner.start(lively))
    assert timedelta(seconds=13) <= runner.now - begin < timedelta(seconds=14)


def test_runs_are_kept_as_long_as_it_is_said(runner: Runner) -> None:
    """By the clock of the test, for a workflow or by the setting."""
    runner.retain("one", timedelta(days=3))
    run = runner.start(one(steps.noop))
    runner.advance(days=2, hours=23)
    assert runner.get(run).finished
    runner.advance(hours=2)
    assert runner.list() == []
    runner.retain("one", timedelta.max)
    for_ever = runner.start(one(steps.noop))
    runner.advance(days=400)
    assert [run.id for run in runner.list()] == [for_ever.id]
    with Runner(now=NOW, retention_days=1) as other:
        other.start(one(steps.noop))
        other.advance(hours=23)
        assert other.count() == 1
        other.advance(hours=2)
        assert other.count() == 0


def test_ages_are_those_of_the_clock(runner: Runner) -> None:
    """Of runs and of dead letters."""
    runner.start(one(steps.fails))
    runner.advance(hours=2)
    late = runner.start(one(steps.fails))
    assert [run.id for run in runner.list(since=timedelta(hours=1))] == [late.id]
    assert [run.id for run in runner.list(since=NOW + timedelta(hours=1))] == [late.id]
    assert runner.count(since=timedelta(hours=3)) == 2
    assert [letter.run for letter in runner.dead_letters(since=timedelta(hours=1))] == [late.id]


def test_why_says_that_nobody_works(runner: Runner) -> None:
    """And, where somebody does, what a run waits for."""
    with runner.without_workers():
        run = runner.start(one(steps.noop))
        assert [reason.text for reason in runner.why(run)] == [
            "1 step ('only') is ready, but nobody takes messages: leave without_workers(), or call work()"
        ]
    wf = Workflow("two", register=False)
    wf.wait_for("hold", "go")
    assert [reason.text for reason in runner.why(runner.start(wf))] == ["step 'hold' waits for signal 'go'"]
    assert runner.why(run) == []


def test_a_body_may_cancel_its_own_run(runner: Runner) -> None:
    """It hears of it at its next look, and its result does not count."""
    heard = []

    def body(ctx: Context) -> None:
        runner.cancel(ctx.run_id)
        heard.append(ctx.cancelled)

    runner.replace(steps.noop, body)
    run = runner.start(one(steps.noop))
    assert (heard, runner.get(run).state, runner.steps(run)[0].state) == ([True], "cancelled", "cancelled")


def test_a_body_that_cancels_its_own_run_has_ended_before_that_is_undone(runner: Runner) -> None:
    """As beside other processes: what it still does comes first."""
    order = []

    def body(ctx: Context) -> None:
        runner.cancel(ctx.run_id)
        assert runner.linked(ctx.run_id, "compensation") == []
        order.append("body")

    runner.replace(steps.noop, body)
    runner.replace(steps.returns, lambda value: order.append(value))
    wf = one(steps.noop)
    wf.on_cancel("undo", steps.returns, value="undo")
    run = runner.start(wf)
    assert order == ["body", "undo"]
    assert [each.state for each in runner.linked(run, "compensation")] == [RunState.SUCCEEDED]


def test_progress_is_kept(runner: Runner) -> None:
    """What the last heartbeat said."""
    run = runner.start(one(steps.beats, progress={"rows": 7}))
    assert runner.steps(run)[0].progress == {"rows": 7}


def test_lost_messages_are_found_by_the_tick(runner: Runner) -> None:
    """A flushed broker costs time and nothing else."""
    with runner.without_workers():
        run = runner.start(one(steps.noop))
        runner.lose_messages()
    assert runner.get(run).state is RunState.PENDING
    runner.advance(seconds=10)
    assert runner.get(run).state is RunState.SUCCEEDED


def test_a_run_can_be_looked_at_half_way(runner: Runner) -> None:
    """Message by message."""
    wf = Workflow("two", register=False)
    wf.step("second", steps.add, a=wf.step("first", steps.add, a=1))
    with runner.without_workers():
        run = runner.start(wf)
        assert runner.work(1) == 1
        assert {step.name: step.state.value for step in runner.steps(run)} == {
            "first": "succeeded", "second": "ready",
        }  # fmt: skip
        assert runner.cancel(run)
    assert runner.calls(steps.add) == [{"a": 1}]


def test_the_more_urgent_step_goes_first(runner: Runner) -> None:
    """Of those that wait at the same time."""
    wf = Workflow("urgent", register=False)
    for priority in (1, 9, 5):
        wf.step(f"p{priority}", steps.returns, value=priority, priority=priority)
    runner.start(wf)
    assert [call["value"] for call in runner.calls(steps.returns)] == [9, 5, 1]


def test_bodies_may_start_runs(runner: Runner) -> None:
    """They are run when the body is over."""
    runner.replace(steps.noop, lambda: runner.start(one(steps.add, a=1), key="inner") and None)
    runner.start(one(steps.noop))
    assert [run.state.value for run in runner.list("one")] == ["succeeded", "succeeded"]


def test_what_needs_a_server_is_refused_by_name(runner: Runner) -> None:
    """With a typed error, and never done half."""
    with pytest.raises(NotInProcess, match="not available in-process: connection="):
        runner.start(one(steps.noop), connection=object())  # type: ignore[arg-type]
    with (
        pytest.raises(NotInProcess, match="the statement 'SELECT 1'"),
        runner.database.connection() as connection,
    ):
        connection.execute(b"SELECT 1")
    assert runner.list() == []


def test_who_waits_for_an_end_is_called_back_before_the_method_returns(runner: Runner) -> None:
    """Once, in the thread of the test, whatever ended the run; and not after it has stopped listening."""
    told: list[str] = []
    wf = Workflow("two", register=False)
    wf.sleep("nap", 60)
    first, second = runner.start(wf), runner.start(wf)
    with (
        runner.ended(first, lambda: told.append("first")),
        runner.ended(second, lambda: told.append("second")),
    ):
        runner.advance(seconds=59)
        assert told == []
        runner.cancel(second)
        assert told == ["second"]
        runner.advance(seconds=1)
    assert told == ["second", "first"]
    third = runner.start(wf)
    with runner.ended(third, lambda: told.append("third")):
        pass
    runner.cancel(third)
    assert told == ["second", "first"]


def test_settings_are_the_defaults_and_what_the_test_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is none of its business; a wrong name is refused."""
    monkeypatch.setenv("TRELLIS_MAX_CRASHES", "77")
    with Runner(value_max_bytes=2048) as runner:
        assert (runner.settings.max_crashes, runner.settings.value_max_bytes) == (3, 2048)
    with pytest.raises(
        ConfigurationError, match="there is no setting 'max_crash'; did you mean 'max_crashes'"
    ):
        Runner(max_crash=1)
    with pytest.raises(ConfigurationError, match="TRELLIS_MAX_CRASHES"):
        Runner(max_crashes=-1)
    with pytest.raises(ValueError, match="has no time zone"):
        Runner(now=datetime(2026, 1, 1))


def test_a_transaction_that_fails_leaves_no_trace(runner: Runner) -> None:
    """Also inside one."""
    store = runner._engine.store

    def failing() -> None:
        with store.transaction():
            store.insert("pause", kind="queue", name="inner")
            raise RuntimeError

    with store.transaction():
        store.insert("pause", kind="queue", name="outer")
        with pytest.raises(RuntimeError):
            failing()
    assert [row["name"] for row in store.all("pause")] == ["outer"]
