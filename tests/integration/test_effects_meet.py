"""Effects that happen once and a body's own transaction, where they meet limits, growth and the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import steps
from stack import Stack

from trellis.workflows import Context, Rate, RunState, Workflow, action
from trellis.workflows.recovery import tick

HAPPENED: list[str] = []  # one entry an effect
MEANWHILE: list[Callable[[], Any]] = []  # what others do in the midst of a body


@pytest.fixture(autouse=True)
def fresh() -> None:
    HAPPENED.clear()
    MEANWHILE.clear()


@action(name="meets.charge", effects="once")
def charge(ctx: Context) -> str:
    """Charges, and then something comes from outside."""
    HAPPENED.append(ctx.idempotency_key)
    for each in MEANWHILE:
        each()
    return "charged"


@action(name="meets.book")
def book(ctx: Context, fails: bool = False) -> int:
    """Writes a row and adds a step, both with its completion."""
    with ctx.transaction() as connection:
        connection.execute("INSERT INTO booked VALUES (%s)", [ctx.step])
    ctx.append({"steps": {"more": {"action": "noop"}}})
    for each in MEANWHILE:
        each()
    if fails:
        raise ValueError("after both")
    return 1


def booked(stack: Stack) -> int:
    return int(stack.rows("SELECT count(*) FROM booked")[0][0])


def start(stack: Stack, action: Any, **options: Any) -> str:
    wf = Workflow("meets", register=False)
    wf.step("only", action, **options)
    return stack.client.start(wf).id


def test_a_body_that_waits_for_its_slot_has_announced_no_effect(stack: Stack) -> None:
    """A crash while it waits leaves nobody in doubt; it happens once when the slot has come."""
    rate = Rate("r", 1, per=3600.0)
    run = start(stack, charge, rate=rate)
    stack.engine.admission.patience = 0.0
    stack.engine.admission.pace(["gate:rate:r", rate.limit, rate.per])  # somebody else has just begun
    stack.engine.run_bundle("meets.charge", run, [0])
    found = stack.rows("SELECT state, waits_for, intent, attempt FROM step WHERE run_id = %s", run)
    assert found == [("parked", "slot", None, 0)]
    assert HAPPENED == []
    stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s", run)
    tick(stack.engine)
    stack.engine.run_bundle("meets.charge", run, [0])
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert len(HAPPENED) == 1
    assert stack.rows("SELECT intent, attempt FROM step WHERE run_id = %s", run) == [(1, 1)]


def test_an_effect_in_doubt_under_a_limit_keeps_its_place(stack: Stack) -> None:
    """Whoever resolves it finds the step where it was: nobody with its key began beside what may have happened."""
    run = start(stack, charge, concurrency_key="k")
    other = start(stack, steps.noop, concurrency_key="k")
    MEANWHILE.append(lambda: stack.rows("UPDATE step SET lease = gen_random_uuid() WHERE run_id = %s", run))
    stack.engine.run_bundle("meets.charge", run, [0])  # its worker is given up in the midst of it
    stack.rows("UPDATE step SET lease_until = now() - interval '1 s', suspect = true WHERE run_id = %s", run)
    tick(stack.engine)
    [doubt] = stack.client.doubts()
    assert doubt.run == run
    assert stack.rows("SELECT state FROM step WHERE run_id = %s", other) == [("parked",)]
    stack.client.resolve(run, "only", done="charged")
    stack.drain(run)
    stack.drain(other)
    assert [stack.client.get(each).state for each in (run, other)] == [RunState.SUCCEEDED] * 2
    assert len(HAPPENED) == 1


def test_a_cancel_in_the_midst_of_an_effect_asks_nobody(stack: Stack) -> None:
    """The effect may have happened; the run is over, its late result changes nothing, and no tick finds a doubt."""
    run = start(stack, charge)
    MEANWHILE.append(lambda: stack.client.cancel(run))
    stack.engine.run_bundle("meets.charge", run, [0])
    tick(stack.engine)
    assert stack.client.get(run).state is RunState.CANCELLED
    assert stack.rows("SELECT state, result, lease FROM step WHERE run_id = %s", run) == [
        ("cancelled", None, None)
    ]
    assert stack.client.doubts() == []
    assert len(HAPPENED) == 1


def test_rows_and_appended_steps_are_one_with_the_completion(stack: Stack) -> None:
    """Both are there when the step is finished."""
    stack.rows("CREATE TABLE booked (what text)")
    run = start(stack, book)
    stack.engine.run_bundle("meets.book", run, [0])
    assert booked(stack) == 1
    assert stack.rows("SELECT name, state FROM step WHERE run_id = %s ORDER BY idx", run) == [
        ("only", "succeeded"), ("only.more", "ready"),
    ]  # fmt: skip
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


@pytest.mark.parametrize("why", ["it fails", "its lease is gone", "its run was cancelled"])
def test_or_neither_is_there(stack: Stack, why: str) -> None:
    """Whatever came between the body and its completion."""
    stack.rows("CREATE TABLE booked (what text)")
    run = start(stack, book, fails=why == "it fails")
    if why == "its lease is gone":  # as after a SIGSTOP of its worker, when the tick gave it to others
        MEANWHILE.append(
            lambda: stack.rows("UPDATE step SET lease = gen_random_uuid() WHERE run_id = %s", run)
        )
    if why == "its run was cancelled":
        MEANWHILE.append(lambda: stack.client.cancel(run))
    stack.engine.run_bundle("meets.book", run, [0])
    assert booked(stack) == 0
    assert stack.rows("SELECT count(*) FROM step WHERE run_id = %s", run) == [(1,)]
    assert stack.rows("SELECT steps FROM run WHERE id = %s", run) == [(1,)]


def test_a_limit_behind_a_joint_transaction_is_asked_when_it_is_committed(stack: Stack) -> None:
    """The place goes to the next one, and only with the commit."""
    stack.rows("CREATE TABLE booked (what text)")
    run = start(stack, book, concurrency_key="k")
    other = start(stack, steps.noop, concurrency_key="k")
    seen: list[str] = []

    def look() -> None:
        with psycopg.connect(stack.database_url) as connection:
            row = connection.execute("SELECT state FROM step WHERE run_id = %s", [other]).fetchone()
            assert row is not None
            seen.append(row[0])

    MEANWHILE.append(look)
    stack.engine.run_bundle("meets.book", run, [0])
    assert seen == ["parked"]
    assert stack.rows("SELECT state FROM step WHERE run_id = %s", other) == [("ready",)]
