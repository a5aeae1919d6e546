"""Why a run does not move: each reason in words, with what would end it."""

from __future__ import annotations

import re

import steps
from stack import Stack, eventually

from trellis.workflows import Client, Rate, Retry, Workflow
from trellis.workflows.recovery import tick
from trellis.workflows.standing import MOST


def go(stack: Stack, workflow: Workflow) -> str:
    run = stack.client.start(workflow)
    stack.drain(run.id)
    return run.id


def texts(stack: Stack, run: str) -> list[str]:
    return [reason.text for reason in stack.client.why(run)]


def test_parked_steps_say_what_they_wait_for(stack: Stack) -> None:
    """A signal, people, a time, a child run; many steps that wait for the same are one reason."""
    child = Workflow("child", register=False)
    child.wait_for("never", "nothing")
    wf = Workflow("parks", register=False)
    wf.wait_for("paid", "payment", timeout=3600)
    wf.approve("ok", who=["ann", "bob"], needed=2)
    wf.sleep("nap", 3600)
    wf.child("sub", child)
    wf.map("many", "trellis.wait_for", over=list(range(50)), signal="go")
    run = go(stack, wf)
    found = {reason.text: reason.advice for reason in stack.client.why(run)}
    said = "\n".join(found)
    assert "step 'paid' waits for signal 'payment', until " in said
    assert found["'many[0]' and 49 more steps wait for signal 'go'"].startswith(f"trellis signal {run} go ")
    assert found["step 'ok' waits for 2 approvals by 'ann', 'bob'"] == f"trellis approve {run} ok --by NAME"
    assert "step 'nap' sleeps, until " in said
    assert "step 'sub' waits for child run " in said
    assert "of 'child', which is pending" in said
    assert len(found) == 5


def test_a_reason_is_true_of_all_steps_that_it_speaks_of(stack: Stack) -> None:
    """Other signals, other people, other child runs, another limit are other reasons; other times are a span."""
    child = Workflow("child", register=False)
    child.wait_for("never", "nothing")
    wf = Workflow("differ", register=False)
    for name, signal in (("p", "payment"), ("q", "other"), ("r", "payment")):
        wf.wait_for(name, signal)
    wf.approve("ok1", who=["ann"])
    wf.approve("ok2", who=["bob", "eve"], needed=2)
    wf.approve("ok3", who=["ann"])
    for seconds in (3600, 7200):
        wf.sleep(f"nap{seconds}", seconds)
    children = [wf.child(f"sub{n}", child) for n in range(2)]
    run = go(stack, wf)
    stack.client.approve(run, "ok2", "eve")
    stack.drain(run)
    found = texts(stack, run)
    assert "'p' and 1 more step wait for signal 'payment'" in found
    assert "step 'q' waits for signal 'other'" in found
    assert "'ok1' and 1 more step wait for 1 approval by 'ann'" in found
    assert "step 'ok2' waits for 1 approval by 'bob'" in found
    assert any(re.fullmatch(r"'nap3600' and 1 more step sleep, the first until .*, the last until .*", text)
               for text in found)  # fmt: skip
    subs = [text for text in found if "waits for child run" in text]
    assert len(subs) == len(set(subs)) == len(children)


def test_steps_behind_different_keys_name_each_its_own_limit_and_holder(stack: Stack) -> None:
    """Though they are steps of one action on one queue."""
    held, late = Workflow("held", register=False), Workflow("late", register=False)
    for wf in (held, late):
        for key in "ab":
            wf.step(f"at_{key}", steps.add, a=1, concurrency_key=f"key:{key}")
    first = stack.client.start(held).id
    run = stack.client.start(late).id
    found = texts(stack, run)
    for key in "ab":
        assert (
            f"step 'at_{key}' waits for 1 place of concurrency key 'key:{key}', "
            f"held by step 'at_{key}' (ready) of run {first}"
        ) in found


def test_what_waits_for_a_rate_names_the_rate(stack: Stack) -> None:
    """In its line, and past it, when its own slot is told."""
    wf = Workflow("rates", register=False)
    for key in "ab":
        for n in range(2):
            wf.step(f"{key}{n}", steps.add, a=n, rate=Rate(f"slots:{key}", 1, per=3600))
    run = stack.client.start(wf).id
    stack.engine.admission.pace(["gate:rate:slots:a", 1, 3600])
    stack.engine.run_bundle("add", run, [0])
    found = texts(stack, run)
    assert any(
        re.match(r"step 'a0' waits for its slot of rate 'slots:a': 1 in 3600 s, until ", text)
        for text in found
    )
    for key in "ab":
        start = f"step '{key}1' waits for the next slot of rate 'slots:{key}': 1 in 3600 s"
        assert any(text.startswith(start) for text in found)


def test_of_a_kind_the_first_reasons_are_told_and_how_many_others_there_are(stack: Stack) -> None:
    """However many different things a run waits for, and nothing else is hidden behind them."""
    wf = Workflow("many", register=False)
    wf.map("each", "trellis.wait_for", over=[f"s{n}" for n in range(300)], signal=wf.item)
    wf.sleep("nap", 3600)
    run = go(stack, wf)
    found = texts(stack, run)
    assert len(found) == MOST + 2
    assert f"… and {300 - MOST} others wait for other signals" in found
    assert any(text.startswith("step 'nap' sleeps") for text in found)


def test_a_ready_step_without_workers_says_so(stack: Stack) -> None:
    """And that nothing ticks."""
    wf = Workflow("lonely", register=False)
    wf.step("add", steps.add, a=1)
    run = stack.client.start(wf).id
    said = " | ".join(texts(stack, run))
    assert "no tick has run ever" in said
    assert "1 step ('add') is ready, but no worker answers: start one with `trellis worker`" in said
    with Client(stack.settings.model_copy(update={"broker_url": None})) as quiet:
        assert "set TRELLIS_BROKER_URL" in [reason.advice for reason in quiet.why(run)]


def test_a_queue_and_an_action_that_no_worker_has(stack: Stack) -> None:
    """The worker answers, and its answer is the reason."""
    stack.worker()
    tick(stack.engine)
    wf = Workflow("deaf", register=False)
    wf.step("add", steps.add, a=1, queue="nowhere")
    run = stack.client.start(wf).id
    assert "but no worker listens to 'nowhere'" in texts(stack, run)[0]
    stack.rows("UPDATE step SET action = 'gone' WHERE run_id = %s", run)
    assert "but no worker knows action 'gone'" in texts(stack, run)[0]


def test_steps_that_some_worker_will_take_are_not_called_lost_with_others(stack: Stack) -> None:
    """Each of the three is said of those of which it is true."""
    stack.worker(concurrency=1)
    tick(stack.engine)
    wf = Workflow("some", register=False)
    for name, action, queue in (
        ("a", steps.add, "nowhere"),
        ("b", steps.noop, "nowhere"),
        ("c", steps.add, None),
    ):
        wf.step(name, action, queue=queue, **({"a": 1} if action is steps.add else {}))
    wf.step("d", steps.add, a=1, priority=9)
    with stack.engine.database.transaction() as connection:  # nothing is announced, so nothing is taken
        run = stack.client.start(wf, connection=connection).id
    stack.rows("UPDATE step SET action = 'gone' WHERE run_id = %s AND name = 'b'", run)
    found = texts(stack, run)
    assert any(text.startswith("1 step ('b') is ready, but no worker knows action 'gone'") for text in found)
    assert any(text.startswith("1 step ('a') is ready, but no worker listens to 'nowhere'") for text in found)
    assert (
        "2 steps ('c', …) are ready and will be taken when the workers come to it: 0 messages in queue 'celery'"
        in found
    )


def test_a_broker_that_is_away_is_the_reason(stack: Stack) -> None:
    """The run is in the journal and begins when it is back."""
    wf = Workflow("cut", register=False)
    wf.step("add", steps.add, a=1)
    run = stack.client.start(wf).id
    with Client(stack.settings, broker_url="redis://127.0.0.1:1/0") as cut:
        assert "the broker does not answer" in " ".join(reason.text for reason in cut.why(run))


def test_a_step_that_backs_off_says_after_what_and_until_when(stack: Stack) -> None:
    """Its failure, and the time of the next attempt."""
    wf = Workflow("backs-off", register=False)
    wf.step("flaky", steps.fails, retry=Retry(3, base=3600, max_delay=3600))
    run = stack.client.start(wf).id
    stack.engine.run_bundle("fails", run, [0])
    (reason,) = stack.client.why(run)
    assert reason.text.startswith("step 'flaky' is not due before ")
    assert reason.text.endswith("after RuntimeError: no")


def test_what_backs_off_does_not_speak_for_what_is_ready(stack: Stack) -> None:
    """Nor the reverse, whichever comes first; several that back off tell the first and the last of their times."""
    wf = Workflow("both", register=False)
    wf.map(
        "each",
        steps.fails_on,
        over=[0, 1, 2, 3, 4],
        value=wf.item,
        bad=0,
        retry=Retry(3, base=3600, max_delay=3600),
    )
    run = stack.client.start(wf).id
    stack.engine.run_bundle("trellis.map", run, [0])
    items = [
        idx
        for (idx,) in stack.rows(
            "SELECT idx FROM step WHERE run_id = %s AND state = 'ready' ORDER BY idx", run
        )
    ]
    stack.engine.run_bundle("fails_on", run, items[:1])
    found = texts(stack, run)
    assert any(text.startswith("step 'each[0]' is not due before ") for text in found)
    assert any(text.startswith("4 steps ('each[1]', …) are ready") for text in found)
    stack.rows(
        "UPDATE step SET sent = false, failures = 1, error = '{\"type\": \"OSError\", \"message\": \"no\"}', "
        "due_at = now() + interval '1 hour' * idx WHERE run_id = %s AND idx = ANY(%s)", run, items[2:4],
    )  # fmt: skip
    found = texts(stack, run)
    assert any(
        re.fullmatch(
            r"'each\[2\]' and 1 more step are not due before .*, the last not before .*, each after OSError, "
            "the first one: no",
            text,
        )
        for text in found
    )
    assert any(text.startswith("2 steps ('each[1]', …) are ready") for text in found)


def test_a_running_step_says_where_and_whether_its_worker_is_silent(stack: Stack) -> None:
    """Claimed by a worker that is no more."""
    wf = Workflow("runs", register=False)
    wf.step("add", steps.add, a=1)
    run = stack.client.start(wf).id
    stack.engine.journal.claim(run, [0], "host:1")
    assert texts(stack, run)[0].startswith("step 'add' runs on host:1 since ")
    stack.rows("UPDATE step SET lease_until = now() - interval '1 second' WHERE run_id = %s", run)
    assert "but that worker is silent since" in texts(stack, run)[0]


def test_a_silent_worker_does_not_speak_for_the_others(stack: Stack) -> None:
    wf = Workflow("runs", register=False)
    for n in range(4):
        wf.step(f"s{n}", steps.add, a=n)
    run = stack.client.start(wf).id
    for worker, idx in (("host:1", [0, 2]), ("host:2", [1, 3])):
        stack.engine.journal.claim(run, idx, worker)
    stack.rows("UPDATE step SET lease_until = now() - interval '1 s' WHERE run_id = %s AND idx = 0", run)
    found = texts(stack, run)
    assert re.match(r"step 's0' runs on host:1 since .*, but that worker is silent since ", found[0])
    assert re.fullmatch(r"'s1' and 1 more step run on host:2, the first since [^,]*", found[1])
    assert re.fullmatch(r"step 's2' runs on host:1 since [^,]*", found[2])


def test_a_finished_run_has_no_reasons(stack: Stack) -> None:
    """Nothing holds it."""
    wf = Workflow("over", register=False)
    wf.step("add", steps.add, a=1)
    assert stack.client.why(go(stack, wf)) == []


def test_a_worker_that_is_busy_is_no_riddle(stack: Stack) -> None:
    """How many messages are before it."""
    stack.worker(concurrency=1)
    tick(stack.engine)
    wf = Workflow("busy", register=False)
    wf.map("each", steps.wait_for, over=[1] * 6, ledger=stack.ledger, file=str(stack.folder / "go"))
    run = stack.client.start(wf).id
    eventually(lambda: any("runs on" in text or "run on" in text for text in texts(stack, run)))
    # The map itself runs first; its items are there a moment later.
    eventually(lambda: any("will be taken when the workers come to it" in text for text in texts(stack, run)))
    (stack.folder / "go").touch()
    stack.client.wait(run, 30)
