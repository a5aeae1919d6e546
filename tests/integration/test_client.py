"""The client: transactions of the caller, waiting, answers and refusals."""

from __future__ import annotations

import threading

import psycopg
import pytest
import redis
import steps
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from redis.client import Pipeline
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from stack import Stack, eventually

from trellis.tasks.errors import (
    CommunicationError,
    ConfigurationError,
    DefinitionError,
    NotFound,
    ParameterError,
    ValueTooLarge,
    WaitTimeout,
)  # fmt: skip
from trellis.tasks.settings import Settings
from trellis.workflows import Client, Workflow
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState


def one(name: str = "one") -> Workflow:
    wf = Workflow(name, params={"n": int}, register=False)
    wf.step("sum", steps.add, a=wf.params.n)
    return wf


def ids(stack: Stack) -> set[str]:
    return {run.id for run in stack.client.list()}


def test_a_run_joins_the_transaction_of_psycopg_in_either_mode(stack: Stack) -> None:
    """With autocommit inside `transaction()`, and without it in the implicit one."""
    with psycopg.connect(stack.database_url) as connection:
        lost = stack.client.start(one(), {"n": 1}, connection=connection)
        connection.rollback()
        kept = stack.client.start(one(), {"n": 1}, connection=connection)
        connection.commit()
    assert ids(stack) == {kept.id} != {lost.id}


def test_a_run_joins_a_connection_whose_rows_have_another_shape(stack: Stack) -> None:
    """The caller's row factory is the caller's."""
    with psycopg.connect(stack.database_url, row_factory=dict_row) as connection:
        run = stack.client.start(one(), {"n": 1}, connection=connection)
        connection.commit()
    assert ids(stack) == {run.id}


def test_a_run_joins_a_connection_that_reads_and_binds_in_its_own_way(stack: Stack) -> None:
    """As Django's does: JSON comes as text, arguments are bound by the client."""
    with psycopg.connect(stack.database_url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.adapters.register_loader("jsonb", TextLoader)
        connection.adapters.register_loader("timestamptz", TextLoader)
        run = stack.client.start(one(), {"n": 1}, connection=connection)
        connection.commit()
    assert run.params == {"n": 1}
    assert run.created_at.tzinfo is not None


def test_a_run_joins_the_transaction_of_sqlalchemy(stack: Stack) -> None:
    """A Connection and a Session; the caller's own rows and the run share one fate."""
    stack.rows("CREATE TABLE orders (id int)")
    engine = create_engine(stack.database_url.replace("postgresql://", "postgresql+psycopg://"))
    kept = set()
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        stack.client.start(one(), {"n": 1}, connection=connection)
        connection.rollback()
        kept.add(stack.client.start(one(), {"n": 1}, connection=connection).id)
        connection.execute(text("INSERT INTO orders VALUES (2)"))
        connection.commit()
    with Session(engine) as session:
        stack.client.start(one(), {"n": 1}, connection=session)
        session.rollback()
        session.execute(text("INSERT INTO orders VALUES (3)"))
        kept.add(stack.client.start(one(), {"n": 1}, connection=session).id)
        session.commit()
    engine.dispose()
    assert ids(stack) == kept
    assert stack.rows("SELECT id FROM orders ORDER BY id") == [(2,), (3,)]


def test_a_committed_run_is_announced_by_the_next_tick(stack: Stack) -> None:
    """The caller's transaction cannot publish; the tick does, once it is committed."""
    with stack.connect() as connection, connection.transaction():
        run = stack.client.start(one(), {"n": 1}, connection=connection)
        assert tick(stack.engine)["published"] == 0
    assert tick(stack.engine)["published"] == 1
    assert tick(stack.engine)["published"] == 0
    assert stack.client.get(run).state is RunState.PENDING


@pytest.mark.parametrize("wrong", ["autocommit", "engine", "text"])
def test_a_connection_that_cannot_be_joined_is_refused(stack: Stack, wrong: str) -> None:
    """With the way to do it right; and nothing is written."""
    with stack.connect() as connection:
        passed = {
            "autocommit": connection,
            "engine": create_engine("postgresql+psycopg://"),
            "text": "postgres",
        }[wrong]
        with pytest.raises(ConfigurationError, match=r"with connection\.transaction\(\)|pass a psycopg"):
            stack.client.start(one(), {"n": 1}, connection=passed)  # type: ignore[arg-type]
    assert ids(stack) == set()


def test_wait_is_woken_and_not_polled(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """With polling slowed to a minute, the end of a run still wakes its waiter."""
    monkeypatch.setattr("trellis.workflows.client.POLL", 60.0)
    run = stack.client.start(one(), {"n": 1})
    found: list[RunState] = []
    waiter = threading.Thread(target=lambda: found.append(stack.client.wait(run, timeout=30).state))
    waiter.start()
    eventually(lambda: stack.rows(
        "SELECT 1 FROM pg_stat_activity "
        "WHERE application_name = 'trellis-listener' AND datname = current_database()"))  # fmt: skip
    stack.drain(run.id)
    waiter.join(20)
    assert found == [RunState.SUCCEEDED]


def test_wait_survives_the_loss_of_its_listener(stack: Stack) -> None:
    """The backend of the LISTEN connection is terminated: polling notices the end."""
    run = stack.client.start(one(), {"n": 1})
    with pytest.raises(WaitTimeout):
        stack.client.wait(run, timeout=0.2)
    stack.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'trellis-listener' "
        "AND datname = current_database()"
    )
    stack.drain(run.id)
    assert stack.client.wait(run, timeout=10).state is RunState.SUCCEEDED


def test_a_wait_that_times_out_says_that_the_run_goes_on(stack: Stack) -> None:
    """A typed error, also a TimeoutError, with state and time."""
    run = stack.client.start(one(), {"n": 1})
    with pytest.raises(TimeoutError, match=r"is still pending after 0\.1 s; it goes on") as caught:
        stack.client.wait(run, timeout=0.1)
    assert isinstance(caught.value, WaitTimeout)
    assert (caught.value.run_id, caught.value.state) == (run.id, "pending")


def test_wrong_starts_are_refused_before_anything_is_written(stack: Stack) -> None:
    """Unknown names, wrong parameters, keys and sizes; each names the field."""
    client = stack.client
    with pytest.raises(NotFound, match="no workflow 'nowhere'"):
        client.start("nowhere")
    with pytest.raises(ParameterError, match="'n'.*missing|required"):
        client.start(one())
    with pytest.raises(ParameterError, match="'n'.*not of type 'integer'|integer"):
        client.start(one(), {"n": "many"})
    with pytest.raises(ParameterError, match="'m'"):
        client.start(one(), {"n": 1, "m": 2})
    with pytest.raises(DefinitionError, match="1 to 500 characters"):
        client.start(one(), {"n": 1}, key="")
    with pytest.raises(DefinitionError, match="add"):
        client.start({"name": "typo", "steps": {"s": {"action": "ad", "inputs": {}}}})
    wf = Workflow("wide", params={"text": str}, register=False)
    wf.step("s", steps.returns, value=wf.params.text)
    with pytest.raises(ParameterError, match="NUL"):
        client.start(wf, {"text": "a\x00b"})
    with pytest.raises(ValueTooLarge, match="the parameters of workflow 'wide' is|are"):
        client.start(wf, {"text": "x" * stack.settings.value_max_bytes})
    assert stack.rows("SELECT count(*) FROM run") == [(0,)]
    assert stack.rows("SELECT count(*) FROM definition") == [(0,)]


def test_a_stored_definition_starts_by_its_name(stack: Stack) -> None:
    """The journal keeps what was started; its newest definition is found by name."""
    stack.client.start(one("known"), {"n": 1})
    again = stack.client.start("known", {"n": 5})
    stack.drain(again.id)
    assert stack.client.result(again) == {"sum": 6}
    assert stack.client.definition(again).steps["sum"].action == "add"


def test_unknown_runs_and_steps_are_not_found(stack: Stack) -> None:
    """Ids that exist nowhere, that are none, and steps that a run does not have."""
    run = stack.client.start(one(), {"n": 1})
    for wrong in ("01a1f80c-cf3a-7686-8674-c566556c6650", "seven"):
        with pytest.raises(NotFound, match=f"there is no run '{wrong}'"):
            stack.client.get(wrong)
    with pytest.raises(NotFound, match="no step 'nothing'"):
        stack.client.result(run, "nothing")


def test_lists_go_by_workflow_state_and_page(stack: Stack) -> None:
    """Newest first, page after page."""
    runs = [stack.client.start(one("a" if n % 2 else "b"), {"n": n}).id for n in range(6)]
    stack.drain(runs[0])
    assert [run.id for run in stack.client.list("a")] == [runs[5], runs[3], runs[1]]
    assert [run.id for run in stack.client.list(state="succeeded")] == [runs[0]]
    first = stack.client.list(limit=4)
    assert [run.id for run in stack.client.list(limit=4, before=first[-1].id)] == runs[1::-1]


def test_the_events_of_a_run_tell_its_story_in_order(stack: Stack) -> None:
    """From creation to success, with every step's begin and end."""
    run = stack.client.start(one(), {"n": 1})
    stack.drain(run.id)
    kinds = [(event.kind, event.step) for event in stack.client.events(run)]
    assert kinds == [
        ("run.created", None), ("run.started", None), ("step.started", "sum"), ("step.succeeded", "sum"),
        ("run.succeeded", None),
    ]  # fmt: skip


def test_a_broker_out_of_reach_delays_a_run_and_loses_none(stack: Stack) -> None:
    """Start returns within seconds; the run is accepted, and the tick announces it once the queue answers."""
    broken = stack.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    with Client(broken) as client:
        run = client.start(one(), {"n": 1})
    stack.rows("UPDATE step SET due_at = now() - interval '1 minute'")
    assert tick(stack.engine)["published"] == 1
    assert stack.client.get(run).state is RunState.PENDING


def test_a_broker_that_dies_in_the_midst_of_a_batch_is_no_error_to_a_client(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is accepted whatever became of its messages; the tick finds out where they are lost."""

    def dies(_: Pipeline, **__: object) -> None:
        raise redis.exceptions.ConnectionError("gone")

    stack.client.start(one(), {"n": 1})  # the queue is known from now on: what can break is the write
    with monkeypatch.context() as broken:
        broken.setattr(Pipeline, "execute", dies)
        run = stack.client.start(one(), {"n": 2})
    assert stack.client.get(run).state is RunState.PENDING
    assert stack.engine.dispatcher.waiting("celery") == 1
    stack.rows("UPDATE step SET due_at = now() - interval '1 day'")
    assert tick(stack.engine)["published"] == 2


def test_a_database_out_of_reach_is_a_clear_error() -> None:
    """Typed, with the driver's reason, and at once."""
    settings = Settings(database_url="postgresql://u@127.0.0.1:1/x", broker_url=None, lease_seconds=1)
    with (
        Client(settings) as client,
        pytest.raises(CommunicationError, match="cannot reach Postgres.*refused"),
    ):
        client.list()


def test_a_crowded_queue_is_not_filled_with_the_same_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that wait for long in a queue with many messages are not announced again: theirs are among them."""
    monkeypatch.setattr("trellis.workflows.recovery._CROWDED", 5)
    for n in range(8):
        stack.client.start(one(), {"n": n})
    stack.rows("UPDATE step SET due_at = now() - interval '1 day'")
    assert tick(stack.engine)["published"] == 0
    assert stack.engine.dispatcher.waiting("celery") == 8
