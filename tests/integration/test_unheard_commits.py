"""`ctx.transaction()` where its COMMIT itself goes wrong: what the body wrote and its step's completion are one."""

from __future__ import annotations

from typing import get_args

import psycopg
import pytest
import steps
from relay import Lost, Relay, relayed
from stack import Stack, eventually

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


@action(name="unheard.silent")
def silent(ctx: Context, database_url: str) -> int:
    """The first time it says nothing for longer than Postgres waits, as if its process had been stopped."""
    first = not ATTEMPTS
    ATTEMPTS.append(ctx.attempt)
    with ctx.transaction() as connection:
        connection.execute("INSERT INTO booked VALUES (%s)", [ctx.step])
        [(backend,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
        if first:
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = '10 ms'")
    if first:
        with psycopg.connect(database_url, autocommit=True) as other:
            gone = "SELECT WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
            eventually(lambda: other.execute(gone, [backend]).fetchall(), what="Postgres has ended it")
    return 1


@pytest.fixture(autouse=True)
def fresh(stack: Stack) -> None:
    ATTEMPTS.clear()
    CUT.clear()
    stack.rows("CREATE TABLE booked (what text)")


def booked(stack: Stack) -> int:
    return int(stack.rows("SELECT count(*) FROM booked")[0][0])


def recovered(stack: Stack, run: str) -> None:
    """Leases run out, and the run goes on to its end."""
    stack.rows(
        "UPDATE step SET lease_until = now() - interval '1 hour', suspect = true WHERE state = 'running'"
    )
    tick(stack.engine)
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


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
    recovered(stack, run)
    assert (ATTEMPTS, booked(stack)) == ([1] if lost == "its answer" else [1, 2], 1)
    assert stack.effects() == {"behind": 1}


def test_a_transaction_that_was_silent_for_too_long_is_a_lost_connection(stack: Stack) -> None:
    """Its step runs again as after a crash, and what its process had claimed besides goes on at once."""
    wf = Workflow("silent", register=False)
    for name in ("silent", "other"):
        wf.step(name, silent, database_url=stack.database_url)
    run = stack.client.start(wf).id
    with pytest.raises(psycopg.OperationalError):
        stack.engine.run_bundle("unheard.silent", run, [0, 1])
    assert stack.rows("SELECT name, state, attempt FROM step ORDER BY idx") == [
        ("silent", "running", 1), ("other", "ready", 0),
    ]  # fmt: skip
    assert booked(stack) == 0
    recovered(stack, run)
    assert (sorted(ATTEMPTS), booked(stack)) == ([1, 1, 2], 2)
