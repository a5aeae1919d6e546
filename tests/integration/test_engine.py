"""The engine on a real journal, its steps run in this process."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import steps
from stack import Stack

from trellis.tasks.app import sender
from trellis.tasks.errors import NotFinished, RunCancelled, RunFailed
from trellis.workflows import Default, Retry, Workflow, bundle
from trellis.workflows.bundle import Bundle
from trellis.workflows.engine import Engine
from trellis.workflows.states import RunState, StepState


def states(stack: Stack, run: str) -> dict[str, str]:
    return {step.name: step.state.value for step in stack.client.steps(run)}


def finish(stack: Stack, workflow: Workflow, **params: object) -> str:
    run = stack.client.start(workflow, params)
    stack.drain(run.id)
    return run.id


def test_results_travel_along_references(stack: Stack) -> None:
    """A step gets what its references say, nested in lists, dicts and texts."""
    wf = Workflow("refs", params={"n": int}, register=False)
    three = wf.step("three", steps.numbers, n=wf.params.n)
    nested = wf.step("nested", steps.returns, value={"all": [three, {"last": three[2]}], "literal": "${x}"})
    wf.step("end", steps.total, values=[nested["all"][1]["last"], 5])
    run = finish(stack, wf, n=3)
    assert stack.client.result(run, "nested") == {"all": [[0, 1, 2], {"last": 2}], "literal": "${x}"}
    assert stack.client.result(run) == {"end": 7}
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_map_runs_once_per_item_and_keeps_the_order(stack: Stack) -> None:
    """A list that is known only at run time becomes its items, at most two lanes wide."""
    wf = Workflow("mapped", register=False)
    three = wf.step("three", steps.numbers, n=5)
    plus = wf.map("plus", steps.add, over=three, concurrency=2, a=wf.item, b=wf.index)
    wf.step("sum", steps.total, values=plus)
    run = stack.client.start(wf)
    stack.engine.run_bundle("numbers", run.id, [0])
    stack.engine.run_bundle("trellis.map", run.id, [1])
    assert [name for name, state in states(stack, run.id).items() if state == "ready"] == [
        "plus[0]",
        "plus[1]",
    ]
    stack.drain(run.id)
    assert stack.client.result(run, "plus") == [0, 2, 4, 6, 8]
    assert stack.client.result(run) == {"sum": 20}


def test_a_map_over_nothing_gives_an_empty_list(stack: Stack) -> None:
    """No items, no waiting."""
    wf = Workflow("empty", register=False)
    none = wf.step("none", steps.numbers, n=0)
    wf.step("sum", steps.total, values=wf.map("plus", steps.add, over=none, a=wf.item))
    run = finish(stack, wf)
    assert (stack.client.result(run, "plus"), stack.client.result(run, "sum")) == ([], 0)


def test_a_false_condition_skips_the_step_and_all_behind_it(stack: Stack) -> None:
    """What needs a skipped step is skipped; the rest goes on, and the run succeeds."""
    wf = Workflow("conditions", params={"n": int}, register=False)
    n = wf.step("n", steps.add, a=wf.params.n, b=0)
    yes = wf.step("yes", steps.add, a=n, when="params.n > 2 and steps.n > 2")
    no = wf.step("no", steps.add, a=n, when="steps.n <= 2")
    wf.step("behind", steps.add, a=no)
    wf.step("beside", steps.add, a=yes)
    run = finish(stack, wf, n=3)
    assert states(stack, run) == {
        "n": "succeeded", "yes": "succeeded", "no": "skipped", "behind": "skipped", "beside": "succeeded",
    }  # fmt: skip
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.client.result(run) == {"beside": 5}


def test_a_failure_fails_the_run_and_cancels_the_rest(stack: Stack) -> None:
    """The default: the first step without another attempt ends the run, and says why."""
    wf = Workflow("failing", register=False)
    bad = wf.step("bad", steps.fails, message="no money")
    wf.step("after", steps.noop, after=[bad])
    wf.step("never", steps.noop, after="after")
    run = finish(stack, wf)
    assert states(stack, run) == {"bad": "failed", "after": "cancelled", "never": "cancelled"}
    with pytest.raises(RunFailed, match="step 'bad': RuntimeError: no money") as caught:
        stack.client.result(run)
    assert "raise RuntimeError(message)" in str(caught.value.error["traceback"])


def test_on_failure_skip_and_default_let_the_run_go_on(stack: Stack) -> None:
    """`skip` skips what depends on the step, a default takes the place of its result."""
    wf = Workflow("tolerant", register=False)
    lost = wf.step("lost", steps.fails, on_failure="skip")
    wf.step("behind", steps.noop, after=[lost])
    zero = wf.step("zero", steps.fails, on_failure=Default(40))
    wf.step("sum", steps.add, a=zero, b=2)
    run = finish(stack, wf)
    assert states(stack, run) == {"lost": "failed", "behind": "skipped", "zero": "failed", "sum": "succeeded"}
    assert stack.client.result(run, "sum") == 42
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_retries_follow_the_policy_and_leave_events(stack: Stack) -> None:
    """A step is tried as often as its policy says, each failure is kept, the key of its effects stays."""
    wf = Workflow("retried", register=False)
    wf.step("third", steps.fails_until, ledger=stack.ledger, attempt=3)
    run = finish(stack, wf)
    assert stack.client.result(run, "third") == 3
    retries = [event for event in stack.client.events(run) if event.kind == "step.retry"]
    assert [(event.step, event.attempt, event.detail["message"]) for event in retries if event.detail] == [
        ("third", 1, "attempt 1"),
        ("third", 2, "attempt 2"),
    ]
    step = stack.client.steps(run)[0]
    assert (step.attempt, step.failures) == (3, 2)


def test_a_backoff_is_kept_even_from_an_early_message(stack: Stack) -> None:
    """A message delivered twice does not shorten a delay: the step is not claimed before it is due."""
    wf = Workflow("patient", register=False)
    wf.step("third", steps.fails_until, ledger=stack.ledger, attempt=2, retry=Retry(2, base=300, jitter=0))
    run = stack.client.start(wf).id
    stack.engine.run_bundle("fails_until", run, [0])
    stack.engine.run_bundle("fails_until", run, [0])
    assert stack.effects() == {"third": 1}
    [(due, now)] = stack.rows("SELECT due_at, now() FROM step WHERE run_id = %s", run)
    assert timedelta(seconds=290) < due - now <= timedelta(seconds=300)


def test_wrong_inputs_fail_at_once_and_name_the_input(stack: Stack) -> None:
    """What cannot become right is not tried again."""
    wf = Workflow("wrong", register=False)
    text = wf.step("text", steps.returns, value="seven")
    wf.step("sum", steps.add, a=text, retry=Retry(5, base=0))
    run = finish(stack, wf)
    with pytest.raises(RunFailed, match=r"step 'sum': InputError: action 'add'.* a: "):
        stack.client.result(run)
    assert stack.client.steps(run)[1].attempt == 1


@pytest.mark.parametrize(("kind", "message"), [("nan", "nan"), ("nul", "NUL"), ("surrogate", "surrogate")])
def test_values_that_json_cannot_hold_are_refused(stack: Stack, kind: str, message: str) -> None:
    """A result is JSON that Postgres can keep, or an error that says what is wrong with it."""
    wf = Workflow("odd", register=False)
    wf.step("odd", steps.odd, kind=kind)
    run = finish(stack, wf)
    with pytest.raises(RunFailed, match=message):
        stack.client.result(run)


def test_a_path_that_a_result_does_not_have_names_the_step(stack: Stack) -> None:
    """`steps.value` has no such field at run time: the message says which step and which field."""
    wf = Workflow("lost", register=False)
    value = wf.step("value", steps.returns, value={"rows": 1})
    wf.step("sum", steps.add, a=value["row"])
    run = finish(stack, wf)
    with pytest.raises(RunFailed, match=r"step 'sum': InputError: .*step 'value'.*'?row'?"):
        stack.client.result(run)


def test_a_result_over_the_cap_names_step_and_remedy(stack: Stack) -> None:
    """Large data are artifacts; the message says so."""
    wf = Workflow("large", register=False)
    wf.step("big", steps.big, size=stack.settings.value_max_bytes)
    run = finish(stack, wf)
    with pytest.raises(RunFailed, match=r"step 'big'.*ctx\.artifact"):
        stack.client.result(run)


def test_a_gathered_list_over_the_cap_names_the_map(stack: Stack) -> None:
    """The sum counts, not only its parts."""
    wf = Workflow("large_map", register=False)
    wf.map("parts", steps.big, over=list(range(12)), size=100_000)
    run = finish(stack, wf)
    with pytest.raises(RunFailed, match=r"the list of results of step 'parts' is 1,200,\d+ bytes"):
        stack.client.result(run)


def test_artifacts_pass_by_reference(stack: Stack) -> None:
    """One step writes a file, another reads it; the journal holds the address."""
    wf = Workflow("files", register=False)
    file = wf.step("write", steps.writes, text="hello\n" * 3)
    wf.step("read", steps.reads, file=file)
    run = finish(stack, wf)
    assert stack.client.result(run, "read") == "hello\n" * 3
    assert stack.client.result(run, "write")["uri"].endswith(f"{run}/write/1/parts/text.txt")


def test_async_bodies_run_to_completion(stack: Stack) -> None:
    """`async def` is an action like any other."""
    wf = Workflow("coroutine", register=False)
    wf.step("sum", steps.async_add, a=1, b=2)
    assert stack.client.result(finish(stack, wf), "sum") == 3


def test_the_context_tells_the_step(stack: Stack) -> None:
    """Run, step, attempt and the key for effects."""
    wf = Workflow("told", register=False)
    wf.step("here", steps.where)
    run = stack.client.start(wf, correlation_id="order-7")
    stack.drain(run.id)
    assert stack.client.result(run, "here") == {
        "run_id": run.id, "step": "here", "attempt": 1, "key": f"{run.id}/here", "correlation_id": "order-7",
    }  # fmt: skip


def test_a_cancelled_run_takes_nothing_more(stack: Stack) -> None:
    """Every open step is cancelled, a claim finds nothing, a second cancel changes nothing."""
    wf = Workflow("stopped", register=False)
    first = wf.step("first", steps.effect, ledger=stack.ledger)
    wf.step("second", steps.effect, ledger=stack.ledger, after=[first])
    run = stack.client.start(wf)
    assert stack.client.cancel(run) is True
    assert stack.client.cancel(run) is False
    stack.engine.run_bundle("effect", run.id, [0, 1])
    assert stack.effects() == {}
    assert set(states(stack, run.id).values()) == {StepState.CANCELLED.value}
    with pytest.raises(RunCancelled):
        stack.client.result(run)


def test_a_result_before_the_end_is_refused(stack: Stack) -> None:
    """No half answers."""
    wf = Workflow("early", register=False)
    wf.step("first", steps.noop)
    run = stack.client.start(wf)
    with pytest.raises(NotFinished, match="pending"):
        stack.client.result(run)


def test_the_journal_holds_no_message_data(stack: Stack) -> None:
    """A message names a run and steps; the inputs stay in the journal."""
    import redis

    wf = Workflow("thin", register=False)
    wf.step("first", steps.returns, value="a-very-long-secret-input")
    run = stack.client.start(wf)
    with redis.Redis.from_url(stack.broker_url) as broker:
        key = next(key for key in broker.keys("celery*"))
        message = broker.lrange(key, 0, -1)[0]
    headers = json.loads(message)["headers"]
    assert b"a-very-long-secret-input" not in message
    assert (headers["task"], headers["argsrepr"], headers["root_id"]) == ("returns", "thin: first", run.id)


@pytest.mark.parametrize(
    ("action", "inputs", "message"),
    [
        ("huge", {"digits": 5000}, "more than 4000 digits"),
        ("exits", {"code": 3}, r"the body called sys\.exit\(3\)"),
        ("speechless", {}, "Unspeakable"),
        ("beats", {"progress": "x" * 20_000}, "at most 16,384 bytes"),
    ],
)
def test_odd_bodies_fail_like_any_other(
    stack: Stack, action: str, inputs: dict[str, object], message: str
) -> None:
    """Whatever a body does, its step has an outcome, and its neighbours have theirs."""
    wf = Workflow("odd", register=False)
    wf.step("odd", action, inputs=inputs, on_failure="skip")
    wf.step("good", steps.noop)
    run = finish(stack, wf)
    assert states(stack, run) == {"odd": "failed", "good": "succeeded"}
    with pytest.raises(RunFailed, match=message):
        stack.client.result(run, "odd")


def test_a_fatal_step_ends_its_bundle(stack: Stack) -> None:
    """The bodies behind a failure that ends the run do not begin."""
    wf = Workflow("stops", register=False)
    wf.step("bad", steps.combine_and_fail, parts=[], number=0, priority=9)
    for number in range(5):
        wf.step(f"s{number}", steps.effect, ledger=stack.ledger)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("any", run, [0, 1, 2, 3, 4, 5])
    assert stack.client.get(run).state is RunState.FAILED
    assert stack.effects() == {}


def test_run_ahead_leaves_alone_what_this_worker_does_not_know(stack: Stack) -> None:
    """A short action of another deployment is published for those who know it, and not taken and failed."""
    wf = Workflow("ahead", register=False)
    first = wf.step("first", steps.noop)
    wf.step("second", steps.add, a=1, after=[first])
    run = stack.client.start(wf).id
    stack.engine.durations.measured("noop", 0.0001)
    stack.engine.durations.measured("add", 0.0001)
    known, stack.engine.actions = stack.engine.actions, type(stack.engine.actions)()
    stack.engine.actions.add(known.get("noop"))
    stack.engine.run_bundle("noop", run, [0])
    assert states(stack, run) == {"first": "succeeded", "second": "ready"}


def test_a_step_that_took_a_worker_down_is_claimed_alone(stack: Stack) -> None:
    """An old message of many steps finds nothing of it; a message of its own does."""
    wf = Workflow("alone", register=False)
    for number in range(3):
        wf.step(f"s{number}", steps.noop)
    run = stack.client.start(wf).id
    stack.rows("UPDATE step SET attempt = 1 WHERE run_id = %s AND idx = 1", run)
    journal = stack.engine.journal
    assert [step.idx for step in journal.claim(run, [0, 1, 2], "w")[0]] == [0, 2]
    assert [step.idx for step in journal.claim(run, [1], "w")[0]] == [1]


def test_a_worker_that_slept_past_its_lease_does_not_begin_what_others_have_finished(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between claim and body, it asks whether the step is still its own (found by the fault suite)."""
    wf = Workflow("slept", register=False)
    wf.step("once", steps.effect, ledger=stack.ledger)
    run = stack.client.start(wf).id
    sleeper = Bundle(stack.engine, "effect", run, [0])
    stack.rows("UPDATE step SET state = 'ready', lease = NULL, sent = true WHERE run_id = %s", run)
    stack.drain(run)
    late = SimpleNamespace(monotonic=lambda: time.monotonic() + 2 * stack.settings.lease_seconds)
    monkeypatch.setattr(bundle, "time", late)
    sleeper.run()
    assert stack.effects() == {"once": 1}


def test_a_worker_that_slept_past_its_lease_goes_on_where_nobody_took_over(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease has run out and the tick has not looked: renewed, it is as good as before."""
    wf = Workflow("overslept", register=False)
    wf.step("once", steps.effect, ledger=stack.ledger)
    run = stack.client.start(wf).id
    sleeper = Bundle(stack.engine, "effect", run, [0])
    late = SimpleNamespace(monotonic=lambda: time.monotonic() + 2 * stack.settings.lease_seconds)
    monkeypatch.setattr(bundle, "time", late)
    sleeper.run()
    assert stack.effects() == {"once": 1}
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_result_that_came_too_late_is_not_used(stack: Stack) -> None:
    """Somebody else has finished the step: its child gets that result, though this process made another one."""
    wf = Workflow("late", register=False)
    a = wf.step("a", steps.returns, value="ours")
    b = wf.step("b", steps.returns, value="x")
    wf.step("c", steps.returns, value=[a, b])
    run = stack.client.start(wf).id
    stack.engine.durations.measured("returns", 0.0001)
    real = stack.engine.journal.complete

    def overtaken(run_id: str, outcomes: list[object], **options: object) -> object:
        stack.rows("UPDATE step SET state = 'succeeded', result = '\"official\"', lease = NULL WHERE run_id = %s "
                   "AND idx = 0", run)  # fmt: skip
        stack.rows(
            "UPDATE step SET missing = missing - 1 WHERE run_id = %s AND name = 'c' AND missing = 2", run
        )
        return real(run_id, outcomes, **options)  # type: ignore[arg-type]

    stack.engine.journal.complete = overtaken  # type: ignore[method-assign, assignment]
    stack.engine.run_bundle("returns", run, [0, 1])
    assert stack.client.result(run, "c") == ["official", "x"]


VALUES = [
    {"b": 1, "aa": [1e16, {"z": -0.0, "y": 1.5e3}], "a": {"ß": 1, "c": 2}, "": 0}, 1e22, 1e-9, 1.0, 2**70, 0.1, -0.0,
    1.7976931348623157e308, "1e16 {", [None, True, "ä\u2028\n"],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_worker_sees_its_own_results_as_all_others_do(stack: Stack, value: object) -> None:
    """Gone on with or read from the journal: the same value, of the same type, with its keys in the same order."""
    wf = Workflow("seen", register=False)
    first = wf.step("first", steps.parses, text=json.dumps(value))
    wf.step("second", steps.returns, value=[f"={first}", first])
    read, ahead = (stack.client.start(wf).id for _ in range(2))
    slow = Engine(stack.with_settings(bundle_ms=0), sender(stack.broker_url))
    slow.run_bundle("parses", read, [0])
    slow.run_bundle("returns", read, [1])
    patient = stack.with_settings(bundle_ms=60_000, ahead_ms=600_000)  # however busy the machine is
    quick = Engine(patient, sender(stack.broker_url))
    quick.durations.measured("returns", 0.0001)
    quick.run_bundle("parses", ahead, [0])
    for engine in (slow, quick):
        engine.database.close()
    assert stack.client.get(ahead).state is RunState.SUCCEEDED
    assert repr(stack.client.result(ahead, "second")) == repr(stack.client.result(read, "second"))
