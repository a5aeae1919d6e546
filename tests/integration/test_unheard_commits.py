"""`ctx.transaction()` where its COMMIT itself goes wrong: what the body wrote and its step's completion are one."""

from __future__ import annotations

from typing import get_args

import psycopg
import pytest
import steps
from relay import Lost, Relay, relayed
from stack import Stack

from trellis.tasks.app import sender
from trellis.workflows import Context, RunState, Workflow, action
from trellis.workflows.engine import Engine
from trellis.workflows.recovery import tick

ATTEMPTS: list[int] = []  # of the body
CUT: list[tuple[Relay, Lost]] = []  # what the body does to its own line


@action(name="unheard.books")
def books(ctx: Context) -> int:
    """A row in its transaction; in its first attempt the line breaks when it is committed."""
    ATTEMPTS.append(ctx.attempt)
    with ctx.transaction() as connection:
        connection.execute("INSERT INTO booked VALUES (%s)", [ctx.step])
    while CUT:
        relay, lost = CUT.pop()
        relay.lose(lost)
    return 1


@pytest.fixture(autouse=True)
def fresh(stack: Stack) -> None:
    ATTEMPTS.clear()
    CUT.clear()
    stack.rows("CREATE TABLE booked (what text)")


def booked(stack: Stack) -> int:
    return int(stack.rows("SELECT count(*) FROM booked")[0][0])


@pytest.mark.parametrize("lost", get_args(Lost))
def test_a_commit_that_nobody_heard_of_happened_whole_or_not_at_all_and_never_twice(
    stack: Stack, lost: Lost
) -> None:
    """The worker is told that its connection broke, in both cases alike; only the journal knows."""
    wf = Workflow("unheard", register=False)
    row = wf.step("book", books)
    wf.step("behind", steps.effect, ledger=stack.ledger, value=row)
    run = stack.client.start(wf).id
    with relayed(stack.database_url) as (relay, url):
        CUT.append((relay, lost))
        engine = Engine(stack.settings.model_copy(update={"database_url": url}), sender(stack.broker_url))
        with pytest.raises(psycopg.OperationalError):
            engine.run_bundle("unheard.books", run, [0])
        engine.database.close()
        assert relay.lost == 1
    [(state,)] = stack.rows("SELECT state FROM step WHERE name = 'book'")
    assert (state, booked(stack)) == (("succeeded", 1) if lost == "its answer" else ("running", 0))
    stack.rows(
        "UPDATE step SET lease_until = now() - interval '1 hour', suspect = true WHERE state = 'running'"
    )
    tick(stack.engine)
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert (ATTEMPTS, booked(stack)) == ([1] if lost == "its answer" else [1, 2], 1)
    assert stack.effects() == {"behind": 1}
