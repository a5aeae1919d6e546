"""What Celery hears of the end of a run: signatures that were left for it, and the canvas that it stands in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import steps
from celery import Celery, chain, chord, current_app, group, signature
from kombu.exceptions import OperationalError
from stack import Process, Stack, eventually

from trellis.tasks.errors import DefinitionError, ParameterError
from trellis.workflows import Client, Workflow, answering
from trellis.workflows.states import RunState


class Media:
    """The other application, and its side of a canvas."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.ledger = stack.folder / "media.txt"
        self.backend = stack.servers.redis.url(112)
        self.app = Celery("media", broker=stack.broker_url, backend=self.backend, set_as_current=False)
        self.app.conf.task_default_queue = "media"

    def worker(self) -> Process:
        env = {
            "MEDIA_BROKER": self._stack.broker_url,
            "MEDIA_LEDGER": str(self.ledger),
            "MEDIA_BACKEND": self.backend,
        }
        return self._stack.foreign_worker("media", "-c", "1", **env)

    def both(self) -> None:
        """Workers of both, which know one result backend."""
        self.worker()
        self._stack.worker(TRELLIS_RESULT_BACKEND_URL=self.backend)

    def task(self, name: str, *args: Any, immutable: bool = False) -> Any:
        return signature(f"media.tasks.{name}", args=args, app=self.app, immutable=immutable)

    def heard(self, name: str = "heard") -> list[tuple[str, list[Any]]]:
        """The ids and arguments of the calls of a task."""
        if not self.ledger.exists():
            return []
        lines = [line.split(" ", 2) for line in self.ledger.read_text().splitlines()]
        return [(each, json.loads(words)) for task, each, words in lines if task == f"media.tasks.{name}"]


@pytest.fixture
def media(stack: Stack) -> Iterator[Media]:
    with redis.Redis.from_url(stack.servers.redis.url(112)) as client:
        client.flushdb()
    before, found = current_app._get_current_object(), Media(stack)
    found.app.set_current()  # as in a program of its own
    yield found
    before.set_current()
    found.app.close()


def sums() -> Workflow:
    wf = Workflow("sums", register=False, params={"a": int, "b": int})
    wf.step("sum", steps.add, a=wf.params.a, b=wf.params.b)
    return wf


def failing() -> Workflow:
    wf = Workflow("failing", register=False, params={"a": int})
    wf.step("first", steps.fails, message="no luck")
    return wf


# --- signatures


def test_a_signature_is_sent_with_the_results_when_the_run_has_succeeded(stack: Stack, media: Media) -> None:
    """To the queue of its own application, and the other one is not."""
    media.worker()
    stack.worker()
    run = stack.client.start(
        sums(), {"a": 1, "b": 2},
        on_success=[media.task("heard", "more"), media.task("heard", "alone", immutable=True)],
        on_failure=media.task("heard", "never"),
    )  # fmt: skip
    stack.client.wait(run, timeout=30)
    eventually(lambda: len(media.heard()) == 2)
    found = sorted((words for _, words in media.heard()), key=len)
    assert found == [["alone"], [{"sum": 3}, "more"]]


def test_those_of_a_workflow_are_sent_for_every_run_and_before_the_runs_own(
    stack: Stack, media: Media
) -> None:
    media.worker()
    stack.worker()
    wf = Workflow("told", register=False, on_success=media.task("heard", "always"))
    wf.step("sum", steps.add, a=1)
    stack.client.wait(stack.client.start(wf, on_success=media.task("heard", "once")), timeout=30)
    stack.client.wait(stack.client.start(wf.spec), timeout=30)
    eventually(lambda: len(media.heard()) == 3)
    assert [words for _, words in media.heard()] == [
        [{"sum": 2}, "always"],
        [{"sum": 2}, "once"],
        [{"sum": 2}, "always"],
    ]


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_signature_is_sent_with_what_went_wrong(how: str, stack: Stack, media: Media) -> None:
    media.worker()
    options = {"on_success": media.task("heard", "never"), "on_failure": media.task("heard", "more")}
    if how == "failed":
        stack.worker()
        run = stack.client.start(failing(), {"a": 1}, **options)
        stack.client.wait(run, timeout=30)
    else:
        run = stack.client.start(failing(), {"a": 1}, **options)
        stack.client.cancel(run)
    [(_, [error, more])] = eventually(lambda: media.heard())
    assert more == "more"
    assert (error["run"], error["workflow"], error["state"]) == (run.id, "failing", how)
    if how == "failed":
        assert (error["step"], error["type"], error["message"]) == ("first", "RuntimeError", "no luck")


def test_a_broker_that_was_away_hears_it_later_under_the_same_id(
    stack: Stack, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark stays on the run until what follows is done; a message that went out all the same has the same id."""
    run = stack.client.start(sums(), {"a": 1, "b": 2}, on_success=media.task("heard"))
    sent = answering.send_signatures

    def breaks(*arguments: Any) -> None:
        sent(*arguments)
        raise OperationalError("the broker is gone")

    with monkeypatch.context() as patch:
        patch.setattr(answering, "send_signatures", breaks)
        stack.drain(run.id)
    assert stack.client.get(run).state is RunState.SUCCEEDED
    stack.worker()
    stack.beat()
    media.worker()
    eventually(lambda: len(media.heard()) == 2)
    assert len({each for each, _ in media.heard()}) == 1
    eventually(lambda: stack.rows("SELECT 1 FROM run WHERE id = %s AND NOT follow", run.id))


def test_a_chain_is_as_good_as_a_task(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker()
    both = media.task("heard", "first") | media.task("heard", "second")
    stack.client.wait(stack.client.start(sums(), {"a": 1, "b": 2}, on_success=both), timeout=30)
    eventually(lambda: len(media.heard()) == 2)
    assert [words[1] for _, words in media.heard()] == ["first", "second"]


def test_what_is_no_signature_is_refused_and_nothing_is_written(stack: Stack, media: Media) -> None:
    with pytest.raises(
        DefinitionError, match=r"on_success= is a Celery signature such as task.s\(1\), not 3"
    ):
        stack.client.start(sums(), {"a": 1, "b": 2}, on_success=3)
    with pytest.raises(
        DefinitionError, match="on_failure= has an argument that is no JSON: Object of type set"
    ):
        stack.client.start(sums(), {"a": 1, "b": 2}, on_failure=media.task("heard", {1}))
    assert stack.client.list() == []


def test_a_task_is_taken_back_when_its_run_is_cancelled(stack: Stack, media: Media) -> None:
    """It waits in its queue; a worker that has heard of it does not begin it."""
    media.worker()
    control = media.app.control
    eventually(lambda: control.cancel_consumer("media", reply=True, timeout=0.2))
    stack.worker()
    wf = Workflow("taken-back", register=False)
    wf.step("heard", task="media.tasks.heard", args=["never"], queue="media")
    run = stack.client.start(wf)
    eventually(lambda: stack.rows("SELECT 1 FROM step WHERE state = 'parked'"))
    stack.client.cancel(run)
    eventually(lambda: any((control.inspect(timeout=0.2).revoked() or {}).values()))
    media.task("heard", "after").apply_async()
    control.add_consumer("media")
    eventually(lambda: media.heard())
    assert [words for _, words in media.heard()] == [["after"]]


# --- a run as a signature


def test_a_run_in_a_chain_takes_what_came_before_and_passes_on_what_it_gives(
    stack: Stack, media: Media
) -> None:
    media.both()
    canvas = chain(media.task("heard", 40), sums().s(b=2), media.task("heard", "after"))
    found = canvas.apply_async()
    assert found.get(timeout=30) == {"sum": 42}
    assert [words for _, words in media.heard()] == [[40], [{"sum": 42}, "after"]]
    assert found.parent.get(timeout=5) == {"sum": 42}


def test_of_a_step_only_the_result_may_be_passed_on(stack: Stack, media: Media) -> None:
    media.both()
    canvas = chain(sums().signature({"a": 1, "b": 2}, step="sum"), media.task("heard"))
    assert canvas.apply_async().get(timeout=30) == 3


def test_an_immutable_run_waits_and_takes_nothing(stack: Stack, media: Media) -> None:
    media.both()
    canvas = chain(media.task("heard", "before"), sums().si(a=1, b=2))
    assert canvas.apply_async().get(timeout=30) == {"sum": 3}


def test_a_chain_needs_no_result_backend(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker()
    chain(media.task("heard", 40), sums().s(b=2), media.task("heard")).apply_async()
    eventually(lambda: len(media.heard()) == 2)
    assert media.heard()[1][1] == [{"sum": 42}]


def test_runs_stand_in_groups_and_in_chords(stack: Stack, media: Media) -> None:
    """Also side by side with other tasks; the body gets all results in order."""
    media.both()
    members = [sums().signature({"a": n, "b": 1}, step="sum") for n in range(3)]
    assert group(members).apply_async().get(timeout=30) == [1, 2, 3]
    canvas = chord([*members, media.task("heard", 9)], media.task("heard", "body"))
    assert canvas.apply_async().get(timeout=30) == [1, 2, 3, 9]
    body = chord([media.task("heard", 1), media.task("heard", 2)], counted().s())
    assert body.apply_async().get(timeout=30) == {"count": 2}


def counted() -> Workflow:
    wf = Workflow("counted", register=False, params={"values": list[int]})
    wf.map("each", steps.add, over=wf.params.values, a=wf.item)
    wf.step("count", steps.total, values=[1, 1], after="each")
    return wf


def test_a_failed_run_fails_its_chain(stack: Stack, media: Media) -> None:
    """What comes behind does not run, errbacks do, and `get` raises."""
    media.both()
    canvas = chain(media.task("heard", 1), failing().s(), media.task("heard", "never"))
    canvas.link_error(media.task("failed"))
    found = canvas.apply_async()
    with pytest.raises(Exception, match="step 'first': RuntimeError: no luck"):
        found.get(timeout=30)
    eventually(lambda: media.heard("failed"))
    assert [words for _, words in media.heard()] == [[1]]


def test_a_failed_run_fails_its_chord(stack: Stack, media: Media) -> None:
    media.both()
    canvas = chord([failing().s(a=1), media.task("heard", 1)], media.task("heard", "never"))
    with pytest.raises(Exception, match="no luck"):
        canvas.apply_async().get(timeout=30)
    assert ["never"] not in [words[1:] for _, words in media.heard()]


def test_while_the_run_goes_on_no_worker_is_held(stack: Stack, media: Media) -> None:
    media.worker()
    stack.worker(concurrency=1, TRELLIS_RESULT_BACKEND_URL=media.backend)
    wf = Workflow("long", register=False)
    wf.wait_for("go", "go")
    found = chain(wf.si(), media.task("heard")).apply_async()
    [run] = eventually(lambda: stack.client.list("long"))
    eventually(lambda: stack.rows("SELECT 1 FROM step WHERE state = 'parked'"))
    other = stack.client.wait(stack.client.start(sums(), {"a": 1, "b": 2}), timeout=30)
    assert other.state is RunState.SUCCEEDED
    stack.client.signal(run, "go", "gone")
    assert found.get(timeout=30) == {"go": "gone"}


def test_a_message_that_comes_twice_begins_one_run(stack: Stack, media: Media) -> None:
    media.both()
    for _ in range(2):
        sums().si(a=1, b=2).apply_async(task_id="a6c6a3e8-3b2f-4b7e-9f1c-0d7d9f0f7a11")
    eventually(lambda: stack.rows("SELECT 1 FROM run WHERE state = 'succeeded'"))
    stack.client.wait(stack.client.start(sums(), {"a": 1, "b": 2}), timeout=30)
    assert len(stack.client.list("sums")) == 2


def test_a_run_that_cannot_begin_fails_like_any_task(stack: Stack, media: Media) -> None:
    media.both()
    canvas = chain(media.task("heard", "no number"), sums().s(b=2))
    with pytest.raises(Exception, match="parameter 'a': 'no number' is not of type 'integer'"):
        canvas.apply_async().get(timeout=30)
    late = chain(media.task("heard", 1), sums().s(a=1, b=2))
    with pytest.raises(Exception, match=r"no parameter left for the result of what came before: use wf.si"):
        late.apply_async().get(timeout=30)


def test_wrong_parameters_are_refused_when_the_signature_is_made() -> None:
    with pytest.raises(ParameterError, match="parameter 'c': does not exist"):
        sums().s(c=1)
    with pytest.raises(ParameterError, match="parameter 'b': is missing"):
        sums().si(a=1)
    with pytest.raises(DefinitionError, match="step='summ' does not exist; did you mean 'sum'"):
        sums().signature({"a": 1}, step="summ")


def test_a_client_without_a_broker_leaves_what_follows_to_the_tick(stack: Stack, media: Media) -> None:
    media.worker()
    with Client(stack.settings.model_copy(update={"broker_url": None})) as client:
        run = client.start(sums(), {"a": 1, "b": 2}, on_failure=media.task("heard"))
        client.cancel(run)
    assert media.heard() == []
    stack.worker()
    stack.beat()
    eventually(lambda: media.heard())
