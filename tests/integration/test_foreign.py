"""Tasks of another Celery application as steps: by their names, unchanged, on its own worker and queue."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import steps
from stack import Process, Stack, eventually

from trellis.tasks.errors import RunFailed
from trellis.workflows import Client, Default, Retry, Workflow, files, foreign
from trellis.workflows.dispatch import Dispatcher
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState, StepState


class Media:
    """The other application."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.ledger = stack.folder / "media.txt"
        self.backend = stack.servers.redis.url(111)

    def worker(self, *, backend: bool = False, pool: str = "prefork") -> Process:
        env = {"MEDIA_BROKER": self._stack.broker_url, "MEDIA_LEDGER": str(self.ledger)}
        if backend:
            env["MEDIA_BACKEND"] = self.backend
        return self._stack.foreign_worker("media", "-P", pool, "-c", "1", **env)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.ledger.read_text().splitlines()] if self.ledger.exists() else []


@pytest.fixture
def media(stack: Stack) -> Media:
    with redis.Redis.from_url(stack.servers.redis.url(111)) as client:
        client.flushdb()
    return Media(stack)


def flow(**params: Any) -> Workflow:
    return Workflow("foreign", register=False, params=params)


def test_a_task_of_another_application_is_a_step_by_its_name(stack: Stack, media: Media) -> None:
    """References stand in its arguments, others use its result, and it is sent once."""
    media.worker()
    stack.worker()
    wf = flow(image=str)
    n = wf.step("n", steps.add, a=40, b=2)
    resized = wf.step(
        "resize", task="media.tasks.resize", args=[wf.params.image], kwargs={"width": n}, queue="media"
    )
    wf.step("after", steps.add, a=resized["width"])
    wf.map("each", task="media.tasks.resize", over=["a", "b"], args=[wf.item, wf.index], queue="media")
    run = stack.client.wait(stack.client.start(wf, {"image": "x.png"}), timeout=60)
    assert run.state is RunState.SUCCEEDED, run.error
    assert stack.client.result(run, "resize") == {"image": "x.png", "width": 42}
    assert stack.client.result(run, "after") == 43
    assert [each["width"] for each in stack.client.result(run, "each")] == [0, 1]
    assert sorted(line[2:] for line in media.lines()) == [["a", "0"], ["b", "1"], ["x.png", "42"]]


def test_a_file_says_the_same_as_python(stack: Stack) -> None:
    text = (
        "name: foreign\nsteps:\n  resize:\n    task: media.tasks.resize\n    args: [x.png]\n"
        "    kwargs: {width: 3}\n    queue: media\n    priority: 7\n"
    )
    wf = flow()
    wf.step(
        "resize", task="media.tasks.resize", args=["x.png"], kwargs={"width": 3}, queue="media", priority=7
    )
    assert files.loads(text).digest() == wf.digest()
    assert files.loads(files.dump(wf.spec)).digest() == wf.digest()


def test_while_it_waits_no_worker_is_held(stack: Stack, media: Media) -> None:
    """One slot of ours serves other steps while the task is in work elsewhere."""
    media.worker()
    stack.worker(concurrency=1)
    stack.beat()
    file = stack.folder / "go"
    wf = flow()
    wf.step("until", task="media.tasks.until", args=[str(file)], queue="media")
    waiting = stack.client.start(wf)
    eventually(lambda: media.lines())
    run = stack.client.wait(stack.client.submit("add", {"a": 1}), timeout=30)
    assert run.state is RunState.SUCCEEDED
    [step] = stack.client.steps(waiting)
    assert step.state is StepState.PARKED
    file.touch()
    assert stack.client.wait(waiting, timeout=30).state is RunState.SUCCEEDED
    assert len(media.lines()) == 1


def test_its_own_retries_are_its_own(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker()
    wf = flow()
    wf.step("again", task="media.tasks.again", queue="media")
    run = stack.client.wait(stack.client.start(wf), timeout=30)
    assert stack.client.result(run) == {"again": 1}
    assert len({line[1] for line in media.lines()}) == 1  # under one id


def test_what_is_not_plain_json_is_written_as_an_action_would(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker()
    wf = flow()
    wf.step("dated", task="media.tasks.dated", queue="media")
    run = stack.client.wait(stack.client.start(wf), timeout=30)
    assert stack.client.result(run) == {"dated": ["2026-11-20"]}


def test_a_failure_has_its_type_and_message_where_the_result_backend_is_known(
    stack: Stack, media: Media
) -> None:
    """And each attempt of the step's policy is a task of its own."""
    media.worker(backend=True)
    stack.worker(TRELLIS_FOREIGN_RESULTS_URL=media.backend)
    stack.beat()
    wf = flow()
    wf.step("broken", task="media.tasks.broken", queue="media", retry=Retry(attempts=2, base=0, jitter=0))
    run = stack.client.wait(stack.client.start(wf), timeout=60)
    with pytest.raises(RunFailed) as caught:
        stack.client.result(run)
    assert caught.value.error["type"] == "ValueError"
    assert "broken pixel" in str(caught.value.error["message"])
    assert "secret" not in str(caught.value.error)
    assert "raise ValueError" in str(caught.value.error["traceback"])
    assert len({line[1] for line in media.lines()}) == 2


def test_without_a_result_backend_a_failure_says_where_its_reason_is(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker()
    wf = flow()
    wf.step("broken", task="media.tasks.broken", queue="media", on_failure=Default({"width": 0}))
    wf.step("odd", task="media.tasks.odd", queue="media", after="broken")
    run = stack.client.wait(stack.client.start(wf), timeout=60)
    assert stack.client.result(run, "broken") == {"width": 0}
    assert run.error is not None
    assert run.error["step"] == "odd"  # a set is no JSON: its worker could not send the answer
    assert run.error["type"] == "TaskFailed"
    task = media.lines()[1][1]
    assert task in run.error["message"]
    assert "TRELLIS_FOREIGN_RESULTS_URL" in run.error["message"]


def test_a_result_over_the_limit_fails_once_and_says_so(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker()
    wf = flow()
    wf.step("large", task="media.tasks.large", queue="media", retry=3)
    run = stack.client.wait(stack.client.start(wf), timeout=60)
    assert run.error is not None
    assert run.error["type"] == "ValueTooLarge"
    assert "'media.tasks.large' in step 'large' is 2,000,002 bytes" in run.error["message"]
    assert len(media.lines()) == 1


def test_a_step_that_crashed_between_parking_and_sending_is_found(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, media: Media
) -> None:
    """The id is in the journal before the message is sent, and what is sent later has that id."""

    def dies(*_: Any, **__: Any) -> None:
        raise SystemExit

    wf = flow()
    wf.step("resize", task="media.tasks.resize", args=["x"], queue="media")
    run = stack.client.start(wf)
    with monkeypatch.context() as patch:
        patch.setattr(Dispatcher, "call", dies)
        with pytest.raises(SystemExit):
            stack.engine.run_bundle("trellis.task", run.id, [0])
    [(state, task)] = stack.rows("SELECT state, wait->>'task' FROM step WHERE run_id = %s", run.id)
    assert state == "parked"
    media.worker()
    stack.worker()
    stack.beat()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert [line[1] for line in media.lines()] == [task]


def test_a_flushed_broker_is_found_out_and_the_task_sent_again_under_its_id(
    stack: Stack, media: Media
) -> None:
    stack.worker()
    stack.beat()
    wf = flow()
    wf.step("resize", task="media.tasks.resize", args=["x"], queue="media")
    run = stack.client.start(wf)
    eventually(lambda: stack.engine.dispatcher.waiting("media"))
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.delete("media")
    media.worker()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    [(task,)] = stack.rows("SELECT wait->>'task' FROM step WHERE run_id = %s", run.id)
    assert [line[1] for line in media.lines()] == [task]


def test_a_killed_foreign_worker_costs_its_task_a_second_run(stack: Stack, media: Media) -> None:
    worker = media.worker()
    stack.worker()
    stack.beat()
    file = stack.folder / "go"
    wf = flow()
    wf.step("until", task="media.tasks.until", args=[str(file)], queue="media")
    run = stack.client.start(wf)
    eventually(lambda: media.lines())
    worker.kill()
    file.touch()
    media.worker()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert len(media.lines()) == 2
    assert len({line[1] for line in media.lines()}) == 1


def test_a_task_in_work_is_not_sent_again(stack: Stack, media: Media) -> None:
    """Its queue is dry and it does not answer, but its worker says that it has it."""
    media.worker()
    stack.worker()
    stack.beat()
    file = stack.folder / "go"
    wf = flow()
    wf.step("until", task="media.tasks.until", args=[str(file)], queue="media")
    run = stack.client.start(wf)
    eventually(
        lambda: stack.rows("SELECT 1 FROM step WHERE (wait->>'pause')::float >= 4"), 60
    )  # two looks at least
    file.touch()
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
    assert len(media.lines()) == 1


def test_a_task_that_no_worker_of_its_queue_knows_fails_with_its_name(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker()
    stack.beat()
    wf = flow()
    wf.step("typo", task="media.tasks.rezise", queue="media")
    run = stack.client.wait(stack.client.start(wf), timeout=60)
    assert run.error is not None
    assert run.error["type"] == "NotFound"
    assert "'media.tasks.rezise'" in run.error["message"]
    assert "listen to queue 'media'" in run.error["message"]


def test_an_answer_that_was_lost_is_read_from_the_result_backend(stack: Stack, media: Media) -> None:
    """The task ran, and its message to us is gone: it is not run again."""
    media.worker(backend=True)
    wf = flow()
    wf.step("resize", task="media.tasks.resize", args=["x"], queue="media")
    run = stack.client.start(wf)
    stack.engine.run_bundle("trellis.task", run.id, [0])
    eventually(lambda: stack.engine.dispatcher.waiting("trellis.system"))
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.delete("trellis.system")
    stack.worker(TRELLIS_FOREIGN_RESULTS_URL=media.backend)
    stack.beat()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert stack.client.result(run, "resize") == {"image": "x", "width": 100}
    assert len(media.lines()) == 1


def test_a_step_past_its_timeout_fails_and_takes_its_task_back(stack: Stack, media: Media) -> None:
    """Queued and never begun counts as well; a worker that comes later does not begin it."""
    media.worker()
    stack.worker()
    stack.beat()
    file = stack.folder / "go"
    first, second = flow(), flow()
    first.step("first", task="media.tasks.until", args=[str(file)], queue="media")
    second.step("late", task="media.tasks.resize", args=["x"], queue="media", timeout=2)
    busy = stack.client.start(first)
    eventually(lambda: media.lines())
    run = stack.client.wait(stack.client.start(second), timeout=30)
    assert run.error is not None
    assert run.error["type"] == "StepTimeout"
    file.touch()
    assert stack.client.wait(busy, timeout=30).state is RunState.SUCCEEDED
    third = stack.client.wait(stack.client.start(first), timeout=30)  # behind the one that was taken back
    assert third.state is RunState.SUCCEEDED
    assert {line[0] for line in media.lines()} == {"media.tasks.until"}


def test_an_answer_that_comes_twice_counts_once(stack: Stack) -> None:
    wf = flow()
    wf.step("resize", task="media.tasks.resize", args=["x"], queue="media")
    run = stack.client.start(wf)
    stack.engine.run_bundle("trellis.task", run.id, [0])
    [(task,)] = stack.rows("SELECT wait->>'task' FROM step WHERE run_id = %s", run.id)
    about = {"run": run.id, "step": "resize", "task": task, "name": "media.tasks.resize"}
    foreign.returned(stack.engine, 1, **about)
    foreign.returned(stack.engine, 2, **about)
    foreign.raised(stack.engine, **about)
    stack.drain(run.id)
    assert stack.client.result(run) == {"resize": 1}
    foreign.returned(stack.engine, 3, **about)  # after the end of the run
    assert stack.client.result(run) == {"resize": 1}


def parked_on(stack: Stack, run: str) -> str:
    [(waits_for,)] = stack.rows("SELECT waits_for FROM step WHERE run_id = %s AND state = 'parked'", run)
    return str(waits_for)


def test_nothing_is_sent_to_a_paused_queue_until_it_is_resumed(stack: Stack, media: Media) -> None:
    """The step waits, says so, and holds nobody up; its timeout counts from when the task is sent."""
    media.worker()
    stack.worker()
    stack.beat()
    stack.client.pause(queue="media")
    wf = flow()
    wf.step("resize", task="media.tasks.resize", args=["x"], queue="media", timeout=5)
    run = stack.client.start(wf)
    eventually(
        lambda: stack.rows("SELECT 1 FROM step WHERE run_id = %s AND waits_for = 'queue:media'", run.id)
    )
    [reason] = stack.client.why(run)
    assert reason.text == "step 'resize' sends its task to queue 'media', which is paused"
    assert reason.advice == "trellis resume --queue media"
    other = stack.client.wait(stack.client.submit("add", {"a": 1}), timeout=30)
    assert other.state is RunState.SUCCEEDED
    assert (media.lines(), stack.engine.dispatcher.waiting("media")) == ([], 0)
    assert stack.client.get(run).state is RunState.RUNNING
    stack.client.resume(queue="media")
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
    assert len(media.lines()) == 1


def test_each_paused_queue_is_its_own(stack: Stack) -> None:
    """A resumed one lets its steps go on, whatever else is paused; of a paused run nothing goes on."""
    runs = {}
    for queue in ("audio", "media"):
        stack.client.pause(queue=queue)
        wf = flow()
        wf.step("resize", task="media.tasks.resize", args=["x"], queue=queue)
        runs[queue] = stack.client.start(wf).id
        stack.engine.run_bundle("trellis.task", runs[queue], [0])
    tick(stack.engine)
    assert {queue: parked_on(stack, run) for queue, run in runs.items()} == {
        queue: f"queue:{queue}" for queue in runs
    }
    stack.client.resume(queue="media")
    stack.client.pause(runs["media"])
    tick(stack.engine)
    stack.engine.run_bundle("trellis.task", runs["media"], [0])
    assert stack.engine.dispatcher.waiting("media") == 0
    stack.client.resume(runs["media"])
    stack.engine.run_bundle("trellis.task", runs["media"], [0])
    assert parked_on(stack, runs["media"]).startswith("task:")
    assert parked_on(stack, runs["audio"]) == "queue:audio"
    assert [stack.engine.dispatcher.waiting(queue) for queue in ("media", "audio")] == [1, 0]


def test_what_was_lost_is_not_sent_again_to_a_paused_queue(stack: Stack, media: Media) -> None:
    """Once it is resumed it is, under the same id."""

    def look() -> None:
        stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s", run.id)
        tick(stack.engine)
        stack.engine.run_bundle("trellis.task", run.id, [0])

    wf = flow()
    wf.step("resize", task="media.tasks.resize", args=["x"], queue="media")
    run = stack.client.start(wf)
    stack.engine.run_bundle("trellis.task", run.id, [0])
    [(task,)] = stack.rows("SELECT wait->>'task' FROM step WHERE run_id = %s", run.id)
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.delete("media")
    stack.client.pause(queue="media")
    media.worker()
    for _ in range(4):
        look()
    assert (media.lines(), parked_on(stack, run.id)) == ([], f"task:{task}")
    assert stack.client.why(run)[0].advice == "trellis resume --queue media"
    stack.client.resume(queue="media")
    look()
    eventually(lambda: media.lines())
    stack.worker()
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
    assert [line[1] for line in media.lines()] == [task]


def test_why_says_that_nobody_listens_to_the_queue_of_a_task(stack: Stack, media: Media) -> None:
    """And that the broker is away; of a task that somebody may take it says no more than that it was sent."""
    stack.worker()
    wf = flow()
    wf.map("each", task="media.tasks.resize", over=["x", "y"], args=[wf.item], queue="media")
    wf.step("other", task="audio.tasks.mix", queue="audio")
    run = stack.client.start(wf)
    sent = "SELECT 1 FROM step WHERE run_id = %s AND starts_with(waits_for, 'task:')"
    eventually(lambda: len(stack.rows(sent, run.id)) == 3)
    both = (
        "'each[0]' and 1 more step wait for Celery task 'media.tasks.resize', which was sent to queue 'media' of "
        "another application"
    )

    def said(client: Client) -> dict[str, str]:
        return {queue: reason.text for reason in client.why(run) for queue in ("media", "audio")
                if f"queue {queue!r}" in reason.text}  # fmt: skip

    silent = {queue: f", but no worker answers that it listens to {queue!r}" for queue in ("media", "audio")}
    found = said(stack.client)
    assert found["media"].startswith(both + silent["media"])
    assert silent["audio"] in found["audio"]
    with Client(stack.settings, broker_url="redis://127.0.0.1:1/0") as cut:
        assert f"{both}, but the broker does not answer" in said(cut)["media"]
    with Client(stack.settings.model_copy(update={"broker_url": None})) as quiet:
        assert said(quiet)["media"] == f"{both}, but this process has no broker to ask"
    file = stack.folder / "go"
    media.worker()
    eventually(lambda: len(media.lines()) == 2)
    busy = flow()
    busy.step("until", task="media.tasks.until", args=[str(file)], queue="media")
    run = stack.client.start(busy)
    eventually(lambda: len(media.lines()) == 3)
    assert said(stack.client)["media"].endswith(", which was sent to queue 'media' of another application")
    file.touch()
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
