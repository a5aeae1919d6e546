"""Effects once: which crash leads to what, with real workers that are killed and a ledger outside; a row of
guarantees.md each. And the transaction that a body shares with its step's completion."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import DefinitionError, NotFound, RunFailed, StateError
from trellis.workflows import AsyncClient, Happened, Retry, Workflow, action, registry
from trellis.workflows.records import Outcome
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState, StepState

EVENTS = "SELECT kind FROM event WHERE kind LIKE 'step.%%' ORDER BY id"


def flow(stack: Stack, name: str, where: str = "", **options: Any) -> Workflow:
    wf = Workflow("flow", register=False)
    charged = wf.step("charge", name, ledger=stack.ledger, where=where, **options)
    wf.step("behind", steps.returns, value=charged)
    return wf


def keys(stack: Stack) -> list[str]:
    """The idempotency key of each effect that has happened."""
    return [line[4] for line in stack.lines() if line[1] == "charge" and len(line) > 4]


def in_doubt(stack: Stack, run: str) -> None:
    eventually(
        lambda: [doubt.step for doubt in stack.client.doubts(run)] == ["charge"], what="it is in doubt"
    )


def succeeded(stack: Stack, run: str) -> str:
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    return str(stack.client.result(run, "behind"))


# --- effects="once": a crash between the announcement and the outcome


@pytest.mark.parametrize("where", ["before", "after"])
def test_ask_a_lost_worker_leaves_the_step_to_a_person(stack: Stack, where: str) -> None:
    """Nobody can know whether the effect has happened, so nothing runs again until somebody says."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "charge_ask", where)).id
    in_doubt(stack, run)
    happened = len(keys(stack))
    assert happened == (1 if where == "after" else 0)
    [doubt] = stack.client.doubts()
    assert (doubt.attempt, doubt.idempotency_key, doubt.probing) == (1, f"{run}/charge", False)
    if where == "after":
        stack.client.resolve(run, "charge", done="it was there", by="ann")
        assert succeeded(stack, run) == "it was there"
    else:
        stack.client.resolve(run, "charge", retry=True)
        assert succeeded(stack, run) == "done by attempt 1"
    assert keys(stack) == [f"{run}/charge"]
    assert [kind for (kind,) in stack.rows(EVENTS)] == ["step.in_doubt", "step.resolved"]


def test_ask_a_person_may_give_it_up(stack: Stack) -> None:
    """The step fails with EffectInDoubt and the person's words; its policy follows, no attempt is left."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "charge_ask", "after", retry=5)).id
    in_doubt(stack, run)
    stack.client.resolve(run, "charge", fail="the bank does not answer")
    stack.client.wait(run, timeout=60)
    with pytest.raises(RunFailed, match="EffectInDoubt: the bank does not answer"):
        stack.client.result(run)
    assert len(keys(stack)) == 1


def test_retry_a_lost_worker_repeats_it_with_the_same_key(stack: Stack) -> None:
    """That is what a service with idempotency keys wants."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "charge_retry", "after")).id
    assert succeeded(stack, run) == "done by attempt 2"
    assert keys(stack) == [f"{run}/charge"] * 2


@pytest.mark.parametrize("where", ["before", "after"])
def test_probe_a_function_says_whether_it_has_happened(stack: Stack, where: str) -> None:
    """Happened: its result is the step's. Not: a new attempt, with the same key. The effect happens once either way."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "charge_probe", where)).id
    said = {"before": "done by attempt 1", "after": "found by the probe"}[where]
    assert succeeded(stack, run) == said
    assert keys(stack) == [f"{run}/charge"]
    assert len(Path(f"{stack.ledger}.probes").read_text().splitlines()) == 1


def test_probe_that_loses_its_worker_is_asked_again(stack: Stack) -> None:
    """And the body does not run meanwhile."""
    stack.worker()
    stack.beat()
    wf = flow(stack, "charge_probe", "after")
    run = stack.client.start(wf).id
    assert succeeded(stack, run) == "found by the probe"
    Path(f"{stack.ledger}.after").unlink()
    # Once more: this run's worker dies in the body, and then in the probe.
    steps_of = Workflow("twice", register=False)
    steps_of.step("charge", "charge_probe", ledger=stack.ledger, where="probe")
    again = stack.client.start(steps_of).id
    stack.client.wait(again, timeout=60)
    assert keys(stack).count(f"{again}/charge") == 1


# --- effects="once": a body that is stopped


def test_a_time_limit_in_the_midst_of_an_effect_leaves_a_doubt(stack: Stack) -> None:
    """Stopped from outside, the body may have had its effect: a person is asked, whatever the retry policy."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "charge_ask", "hang", timeout=0.5, retry=5)).id
    in_doubt(stack, run)
    stack.client.resolve(run, "charge", done="done")
    assert succeeded(stack, run) == "done"
    assert len(keys(stack)) == 1


def test_a_shutdown_in_the_midst_of_an_effect_leaves_a_doubt_at_once(stack: Stack) -> None:
    """No lease has to run out; the next worker does not repeat it."""
    first = stack.worker("first", TRELLIS_SHUTDOWN_SECONDS="0.5", TRELLIS_LEASE_SECONDS="60")
    run = stack.client.start(flow(stack, "charge_ask", "hang", timeout=600)).id
    eventually(lambda: keys(stack))
    first.popen.terminate()
    eventually(lambda: first.popen.poll() is not None, 60, "the worker ends")
    in_doubt(stack, run)
    stack.worker("second")
    stack.beat()
    stack.client.resolve(run, "charge", done="seen in the books")
    assert succeeded(stack, run) == "seen in the books"
    assert len(keys(stack)) == 1


def test_an_exception_is_an_answer_and_leaves_no_doubt(stack: Stack) -> None:
    """The body says itself that it failed: without retries the run fails, with them it is tried again."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "charge_ask", "raise")).id
    assert stack.client.wait(run, timeout=60).state is RunState.FAILED
    again = stack.client.start(flow(stack, "charge_ask", "raise", retry=Retry(2, base=0))).id
    assert stack.client.wait(again, timeout=60).state is RunState.FAILED
    assert (keys(stack).count(f"{run}/charge"), keys(stack).count(f"{again}/charge")) == (1, 2)


def test_a_worker_that_is_paused_in_the_midst_of_an_effect_records_nothing_any_more(stack: Stack) -> None:
    """Past its lease the step is in doubt; when the worker wakes up, its result is late. Nothing is done twice."""
    worker = stack.worker(concurrency=1)
    stack.beat()
    wf = Workflow("paused", register=False)
    wf.step("charge", "charge_ask", ledger=stack.ledger, where="hang", timeout=600)
    run = stack.client.start(wf).id
    eventually(lambda: keys(stack))
    worker.send(signal.SIGSTOP)
    stack.worker("second", concurrency=1)
    in_doubt(stack, run)
    worker.send(signal.SIGCONT)
    eventually(lambda: "step.lost" in worker.text() or "step.stopped" in worker.text(), 60)
    assert [doubt.step for doubt in stack.client.doubts(run)] == ["charge"]
    stack.client.resolve(run, "charge", done="done")
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert len(keys(stack)) == 1


def test_a_step_that_may_be_repeated_runs_again(stack: Stack) -> None:
    """The other class: a lost worker means a new attempt, and the effect may happen twice, under one key."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "charge_repeatable", "after")).id
    assert succeeded(stack, run) == "done by attempt 2"
    assert keys(stack) == [f"{run}/charge"] * 2
    assert stack.rows("SELECT count(*) FROM step WHERE intent IS NOT NULL") == [(0,)]


# --- ctx.transaction()


@pytest.fixture
def booking(stack: Stack) -> None:
    stack.rows("CREATE TABLE booking (key text, attempt int)")


@pytest.mark.usefixtures("booking")
def test_what_a_body_writes_in_its_transaction_commits_with_the_step(stack: Stack) -> None:
    """A worker that dies after the insert: the row is gone with it, and there once after the next attempt."""
    stack.worker()
    stack.beat()
    run = stack.client.start(flow(stack, "books", "before")).id
    assert succeeded(stack, run) == "booked"
    assert stack.rows("SELECT key, attempt FROM booking") == [(f"{run}/charge", 2)]


@pytest.mark.usefixtures("booking")
def test_a_body_that_fails_or_is_stopped_has_written_nothing(stack: Stack) -> None:
    """An exception after the insert, and a time limit."""
    stack.worker()
    for where in ("raise", "hang"):
        run = stack.client.start(flow(stack, "books", where, timeout=0.5)).id
        assert stack.client.wait(run, timeout=60).state is RunState.FAILED
    assert stack.rows("SELECT * FROM booking") == []
    assert stack.client.wait(stack.client.start(flow(stack, "books")), timeout=60).state is RunState.SUCCEEDED


def test_a_body_may_be_silent_in_its_transaction_for_as_long_as_it_may_run(stack: Stack) -> None:
    """Postgres ends the engine's own transactions after two leases; a body's after twice its time limit."""

    @action(name="patient")
    def patient(ctx: steps.Context) -> str:
        with ctx.transaction() as sql:
            return str(sql.execute("SHOW idle_in_transaction_session_timeout").fetchone()[0])

    wf = Workflow("patient", register=False)
    limit = 600 - stack.settings.timeout_grace
    wf.step("patient", patient, timeout=limit)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("patient", run, [0])
    registry.actions.discard("patient")
    assert stack.client.result(run) == {"patient": "20min"}


@pytest.mark.usefixtures("booking")
def test_an_outage_of_postgres_in_the_transaction_is_not_the_bodys_failure(stack: Stack) -> None:
    """The step is as one whose worker died there: it runs again, also without a retry policy."""
    attempts: list[int] = []

    @action(name="books_through_an_outage")
    def books_through_an_outage(ctx: steps.Context) -> int:
        attempts.append(ctx.attempt)
        with ctx.transaction() as sql:
            sql.execute("INSERT INTO booking VALUES ('key', %s)", (ctx.attempt,))
            if ctx.attempt == 1:
                sql.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return ctx.attempt

    wf = Workflow("outage", register=False)
    wf.step("book", books_through_an_outage)
    run = stack.client.start(wf).id
    with pytest.raises(psycopg.OperationalError):
        stack.engine.run_bundle("books_through_an_outage", run, [0])
    stack.rows("UPDATE step SET lease_until = now() - interval '1 hour', suspect = true")
    tick(stack.engine)
    stack.drain(run)
    registry.actions.discard("books_through_an_outage")
    assert (attempts, stack.client.result(run)) == ([1, 2], {"book": 2})
    assert stack.rows("SELECT attempt FROM booking") == [(2,)]


@pytest.mark.usefixtures("booking")
def test_a_stale_lease_rolls_back_what_the_body_has_written(stack: Stack) -> None:
    """Somebody else has the step by then: nothing of this attempt stays."""

    @action(name="books_late")
    def books_late(run: str, ctx: steps.Context) -> None:
        with ctx.transaction() as sql:
            sql.execute("INSERT INTO booking VALUES (%s, 1)", (run,))
        stack.rows("UPDATE step SET lease = gen_random_uuid()")  # the tick took it over

    wf = Workflow("late", register=False)
    wf.step("late", books_late, run="x")
    run = stack.client.start(wf).id
    stack.engine.run_bundle("books_late", run, [0])
    registry.actions.discard("books_late")
    assert stack.rows("SELECT * FROM booking") == []
    assert stack.rows("SELECT state FROM step") == [("running",)]


@pytest.mark.usefixtures("booking")
def test_a_connection_that_is_found_dead_when_the_transaction_begins_is_replaced(stack: Stack) -> None:
    """Nothing was written yet: the body need not know of it."""

    @action(name="books_after_a_restart")
    def books_after_a_restart(ctx: steps.Context) -> int:
        stack.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'trellis'"
        )
        with ctx.transaction() as sql:
            sql.execute("INSERT INTO booking VALUES ('key', %s)", (ctx.attempt,))
        return ctx.attempt

    wf = Workflow("restart", register=False)
    wf.step("book", books_after_a_restart)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("books_after_a_restart", run, [0])
    registry.actions.discard("books_after_a_restart")
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.rows("SELECT attempt FROM booking") == [(1,)]


@pytest.mark.usefixtures("booking")
def test_parts_of_the_transaction_are_taken_back_one_by_one(stack: Stack) -> None:
    """An exception that the body catches outside the `with` block undoes that block alone; nothing can commit early."""

    @action(name="parts")
    def parts(ctx: steps.Context) -> int:
        with ctx.transaction() as sql:
            sql.execute("INSERT INTO booking VALUES ('kept', 1)")
            with pytest.raises(psycopg.ProgrammingError):
                sql.commit()
        with suppress(psycopg.errors.UndefinedTable), ctx.transaction() as sql:
            sql.execute("INSERT INTO booking VALUES ('lost', 1)")
            sql.execute("SELECT * FROM nowhere")
        assert stack.rows("SELECT * FROM booking") == []
        with ctx.transaction() as sql:
            [found] = sql.execute("SELECT count(*) FROM booking").fetchall()
        return int(found[0])

    wf = Workflow("parts", register=False)
    first = wf.step("parts", parts)
    wf.step("behind", steps.add, a=first)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("parts", run, [0])
    stack.drain(run)
    registry.actions.discard("parts")
    assert stack.rows("SELECT key FROM booking") == [("kept",)]
    assert stack.client.result(run, "behind") == 2


@pytest.mark.usefixtures("booking")
def test_a_constraint_that_is_checked_at_the_commit_fails_the_step(stack: Stack) -> None:
    """And the row with it; the retry policy follows."""
    stack.rows("CREATE TABLE once (key text UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    @action(name="breaks_late")
    def breaks_late(ctx: steps.Context) -> None:
        with ctx.transaction() as sql:
            sql.execute("INSERT INTO once VALUES ('a'), ('a')")

    wf = Workflow("breaks", register=False)
    wf.step("breaks", breaks_late)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("breaks_late", run, [0])
    registry.actions.discard("breaks_late")
    found = stack.client.get(run)
    assert (found.state, (found.error or {})["type"]) == (RunState.FAILED, "UniqueViolation")
    assert stack.rows("SELECT * FROM once") == []


def test_a_plain_job_has_no_such_transaction() -> None:
    """It has no step to commit with."""

    @action(name="plain_transaction")
    def plain_transaction(ctx: steps.Context) -> None:
        with ctx.transaction():
            pass

    with pytest.raises(StateError, match="durable runs only"):
        plain_transaction.run()
    registry.actions.discard("plain_transaction")


# --- the fence, the cost, the refusals


def test_the_announcement_is_fenced_and_costs_other_steps_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another lease nothing is announced and the body does not run; a repeatable step has no such statement."""
    run = stack.client.start(flow(stack, "charge_ask")).id
    [claimed] = stack.engine.journal.claim(run, [0], "w")[0]
    assert not stack.engine.journal.intend(
        run, claimed._replace(lease="01a1f80c-cf3a-7686-8674-c566556c6650")
    )
    assert stack.rows("SELECT intent FROM step WHERE idx = 0") == [(None,)]
    assert stack.engine.journal.intend(run, claimed)
    assert stack.rows("SELECT intent FROM step WHERE idx = 0") == [(1,)]
    done = Outcome(0, claimed.lease, StepState.SUCCEEDED, b'"x"')
    stack.engine.journal.complete(run, [done])
    monkeypatch.setattr(stack.engine.journal, "intend", None)
    stack.drain(run)
    assert stack.client.result(run, "behind") == "x"


def test_of_two_people_one_resolves(stack: Stack) -> None:
    """And what cannot be resolved is refused with its state."""
    run = stack.client.start(flow(stack, "charge_ask")).id
    with pytest.raises(StateError, match="not in doubt: it is ready"):
        stack.client.resolve(run, "charge", retry=True)
    with pytest.raises(NotFound, match="there is no step 'chrge'"):
        stack.client.resolve(run, "chrge", retry=True)
    for options in ({}, {"retry": True, "fail": "x"}, {"done": 1, "retry": True}):
        with pytest.raises(DefinitionError, match=r"one of done=…, retry=True and fail=…"):
            stack.client.resolve(run, "charge", **options)
    with pytest.raises(DefinitionError, match="is not JSON"):
        stack.client.resolve(run, "charge", done=object())

    async def resolve() -> Any:
        async with AsyncClient(stack.settings) as client:
            return await client.doubts(run)

    assert asyncio.run(resolve()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"in_doubt": "ask"}, 'in_doubt= goes with effects="once"'),
        (
            {"effects": "once", "in_doubt": "asks"},
            "in_doubt 'asks' is neither one of 'ask', 'retry' nor a function",
        ),
        (
            {"effects": "once", "in_doubt": lambda other: None},
            "its probe takes 'other' instead of the action's inputs",
        ),
    ],
)
def test_what_is_wrong_is_refused_where_the_action_is_defined(options: dict[str, Any], told: str) -> None:
    """With the action's name."""

    def pay(account: str) -> None: ...

    with pytest.raises(DefinitionError, match="action 'pay'") as caught:
        action(name="pay", **options)(pay)
    assert told in str(caught.value)
    assert Happened(1) == Happened(1)
