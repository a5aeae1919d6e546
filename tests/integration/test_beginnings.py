"""When runs begin, and whether a new one does: delays, debounce and singletons, also with many starts at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import DefinitionError
from trellis.workflows import AsyncClient, Debounce, Run, Singleton, Workflow
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState


def one(name: str = "one") -> Workflow:
    wf = Workflow(name, params={"n": int}, register=False)
    first = wf.step("sum", steps.add, a=wf.params.n)
    wf.step("twice", steps.add, a=first, b=first)
    return wf


def due(stack: Stack, run: Run) -> datetime:
    [(at, sent, state)] = stack.rows(
        "SELECT due_at, sent, state FROM step WHERE run_id = %s AND idx = 0", run.id
    )
    assert (sent, state) == (False, "ready")
    return at  # type: ignore[no-any-return]


def time_passes(stack: Stack, run: Run) -> None:
    """As if its time had come."""
    stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s AND state IN ('ready', 'parked')", run.id)


def finishes(stack: Stack, run: Run) -> bool:
    tick(stack.engine)
    stack.drain(run.id)
    return stack.client.get(run).state is RunState.SUCCEEDED


@pytest.mark.parametrize("how", ["delay", "timedelta", "at"])
def test_a_delayed_run_waits_in_the_journal_and_not_in_the_broker(stack: Stack, how: str) -> None:
    """Accepted, unannounced, and not to be claimed by anyone before its time; then it runs."""
    [(now,)] = stack.rows("SELECT now()")
    options: dict[str, Any] = {
        "delay": {"delay": 3600},
        "timedelta": {"delay": timedelta(hours=1)},
        "at": {"at": now + timedelta(hours=1)},
    }[how]
    run = stack.client.start(one(), {"n": 1}, **options)
    assert abs(due(stack, run) - now - timedelta(hours=1)) < timedelta(minutes=1)
    tick(stack.engine)
    assert stack.engine.dispatcher.waiting("celery") == 0
    stack.engine.run_bundle("add", run.id, [0])
    due(stack, run)
    time_passes(stack, run)
    assert finishes(stack, run)


def test_a_moment_that_is_past_begins_with_the_next_tick(stack: Stack) -> None:
    """No error, no loss."""
    run = stack.client.start(one(), {"n": 1}, at=datetime(2020, 1, 1, tzinfo=UTC))
    assert finishes(stack, run)


def test_a_real_worker_runs_it_when_its_time_comes(stack: Stack) -> None:
    """By beat alone: nobody sends anything at the start."""
    stack.worker()
    stack.beat()
    run = stack.client.start(one(), {"n": 1}, delay=0.5)
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
    [(early,)] = stack.rows("SELECT started_at < created_at + interval '0.5 s' FROM run")
    assert not early


def test_a_delayed_run_is_cancelled_before_it_begins(stack: Stack) -> None:
    """And never does."""
    run = stack.client.start(one(), {"n": 1}, delay=3600)
    assert stack.client.cancel(run)
    assert stack.rows("SELECT DISTINCT state FROM step") == [("cancelled",)]


def test_a_delayed_run_in_the_callers_transaction(stack: Stack) -> None:
    """Rolled back, it never was; committed, it keeps its time."""
    with psycopg.connect(stack.database_url) as connection:
        stack.client.start(one(), {"n": 1}, delay=60, connection=connection)
        connection.rollback()
        kept = stack.client.start(one(), {"n": 1}, delay=60, connection=connection)
        connection.commit()
    assert [run.id for run in stack.client.list()] == [kept.id]
    due(stack, kept)


# --- debounce


def test_of_starts_within_the_window_one_run_comes_with_the_last_parameters(stack: Stack) -> None:
    """Each one gives the same run back, which then waits anew; other keys and other workflows are others."""
    soon = Debounce("customer:7", wait=3600)
    runs = [stack.client.start(one(), {"n": n}, debounce=soon) for n in range(1, 6)]
    assert len({run.id for run in runs}) == 1
    other = stack.client.start(one(), {"n": 1}, debounce=Debounce("customer:8", wait=3600))
    another = stack.client.start(one("two"), {"n": 1}, debounce=soon)
    assert len({runs[0].id, other.id, another.id}) == 3
    time_passes(stack, runs[0])
    assert finishes(stack, runs[0])
    assert stack.client.result(runs[0], "twice") == 12
    assert runs[-1].params == {"n": 5}
    assert [event.kind for event in stack.client.events(runs[0])].count("run.debounced") == 4


def test_every_start_puts_the_run_off_but_not_beyond_max_wait(stack: Stack) -> None:
    """The end of the wait moves with the last start, the end of max_wait with none."""
    [(now,)] = stack.rows("SELECT now()")
    run = stack.client.start(one(), {"n": 1}, debounce=Debounce("k", wait=600, max_wait=1000))
    stack.rows("UPDATE run SET created_at = created_at - interval '300 s'")
    stack.client.start(one(), {"n": 2}, debounce=Debounce("k", wait=600, max_wait=1000))
    assert abs((due(stack, run) - now).total_seconds() - 600) < 60
    stack.rows("UPDATE run SET created_at = created_at - interval '500 s'")
    stack.client.start(one(), {"n": 3}, debounce=Debounce("k", wait=600, max_wait=1000))
    assert abs((due(stack, run) - now).total_seconds() - 200) < 60
    stack.rows("UPDATE run SET created_at = created_at - interval '500 s'")
    stack.client.start(one(), {"n": 4}, debounce=Debounce("k", wait=600, max_wait=1000))
    assert due(stack, run) < now
    assert finishes(stack, run)


def test_a_start_while_the_run_runs_begins_another_window(stack: Stack) -> None:
    """What has begun is not changed any more; the next run takes its place under the key."""
    soon = Debounce("k", wait=3600)
    first = stack.client.start(one(), {"n": 1}, debounce=soon)
    time_passes(stack, first)
    tick(stack.engine)
    stack.engine.journal.claim(first.id, [0], "w")
    second = stack.client.start(one(), {"n": 2}, debounce=soon)
    third = stack.client.start(one(), {"n": 3}, debounce=soon)
    assert first.id != second.id == third.id
    assert stack.client.get(first).params == {"n": 1}


def test_another_definition_replaces_the_waiting_one(stack: Stack) -> None:
    """The steps as well as the parameters: a deployment in between is seen."""
    soon = Debounce("k", wait=3600)
    first = stack.client.start(one(), {"n": 1}, debounce=soon)
    changed = one()
    changed.step("more", steps.noop)
    again = stack.client.start(changed, {"n": 2}, debounce=soon)
    assert (again.id, again.steps, len(stack.client.steps(again))) == (first.id, 3, 3)
    time_passes(stack, again)
    assert finishes(stack, again)


# --- singletons


def test_while_a_run_is_open_its_key_gives_it_back(stack: Stack) -> None:
    """Whatever the parameters; over, the next start makes a new one; another workflow has its own keys."""
    first = stack.client.start(one(), {"n": 1}, singleton="k")
    assert stack.client.start(one(), {"n": 2}, singleton="k").id == first.id
    assert stack.client.start(one("two"), {"n": 2}, singleton="k").id != first.id
    assert finishes(stack, first)
    second = stack.client.start(one(), {"n": 3}, singleton="k")
    assert second.id != first.id
    stack.client.cancel(second)
    assert stack.client.start(one(), {"n": 4}, singleton="k").id not in (first.id, second.id)


def test_a_window_gives_back_a_run_that_is_over(stack: Stack) -> None:
    """For so many seconds after its creation, and not longer."""
    once = Singleton("k", window=timedelta(minutes=10))
    first = stack.client.start(one(), {"n": 1}, singleton=once)
    assert finishes(stack, first)
    assert stack.client.start(one(), {"n": 2}, singleton=once).id == first.id
    stack.rows("UPDATE run SET created_at = created_at - interval '11 minutes'")
    assert stack.client.start(one(), {"n": 2}, singleton=once).id != first.id


def at_once(count: int, start: Callable[[int], Run]) -> list[Run]:
    gate = threading.Barrier(count)

    def go(n: int) -> Run:
        gate.wait()
        return start(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(go, range(count)))


def test_of_starts_at_the_same_moment_exactly_one_makes_the_run(stack: Stack) -> None:
    """Twelve threads, a singleton and a debounce: one run each, and every start has it."""
    single = at_once(12, lambda n: stack.client.start(one("a"), {"n": n}, singleton="k"))
    soon = Debounce("k", wait=3600)
    debounced = at_once(12, lambda n: stack.client.start(one("b"), {"n": n}, debounce=soon))
    assert [len({run.id for run in runs}) for runs in (single, debounced)] == [1, 1]
    assert len(stack.client.list()) == 2
    last = stack.client.get(debounced[0])
    [(first,)] = stack.rows("SELECT inputs->'a' FROM step WHERE run_id = %s AND idx = 0", last.id)
    assert first == last.params["n"]
    time_passes(stack, last)
    assert finishes(stack, single[0])
    assert finishes(stack, last)


def test_a_debounce_and_a_worker_at_the_same_moment_lose_no_start(stack: Stack) -> None:
    """The window ends while starts come: each start is in a run that has not begun, or begins a new one."""
    soon = Debounce("k", wait=0)

    def claim(stop: threading.Event) -> None:
        while not stop.is_set():
            for (run,) in stack.rows("SELECT run_id::text FROM step WHERE state = 'ready' AND idx = 0"):
                stack.engine.run_bundle("add", run, [0])

    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(claim, stop)
        runs = [stack.client.start(one(), {"n": n}, debounce=soon) for n in range(40)]
        stop.set()
        working.result()
    for run in {run.id: run for run in runs}.values():
        tick(stack.engine)
        stack.drain(run.id)
    found = {run.id: stack.client.get(run) for run in runs}
    assert {run.state for run in found.values()} == {RunState.SUCCEEDED}
    last = found[runs[-1].id]
    assert (last.params, stack.client.result(last, "sum")) == ({"n": 39}, 40)
    for run in found.values():
        assert stack.client.result(run, "sum") == run.params["n"] + 1


# --- refusals, and the rest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"at": datetime(2030, 1, 1)}, "is not a datetime with a time zone"),
        ({"at": "tomorrow"}, "at='tomorrow' is not a datetime"),
        ({"delay": -1}, "delay -1 is not a timedelta or a number of seconds"),
        ({"delay": float("nan")}, "delay nan"),
        ({"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)}, "at= and delay= both say when"),
        ({"delay": 1, "debounce": Debounce("k", wait=1)}, "delay= and debounce= both say when"),
        ({"debounce": "k"}, "is not a Debounce(key, wait=…)"),
        ({"singleton": ""}, "its key '' is not a text of 1 to 500 characters"),
        ({"singleton": "k", "key": "k"}, "key= and singleton= both say which"),
        ({"singleton": "k", "debounce": Debounce("k", wait=1)}, "debounce= and singleton= both say which"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    stack: Stack, options: dict[str, Any], told: str
) -> None:
    """Before anything is written, naming the workflow."""
    with pytest.raises(DefinitionError) as caught:
        stack.client.start(one(), {"n": 1}, **options)
    assert told in str(caught.value)
    assert stack.client.list() == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Debounce("k", wait=-1),
        lambda: Debounce("k", wait=10, max_wait=5),
        lambda: Debounce("", wait=1),
        lambda: Singleton("k", window="day"),  # type: ignore[arg-type]
        lambda: Singleton("a\x00b"),
    ],
)
def test_a_window_that_is_none_is_refused_where_it_is_written(wrong: Callable[[], object]) -> None:
    """Not at the first start."""
    with pytest.raises(DefinitionError, match=r"Debounce|Singleton"):
        wrong()


def test_the_same_for_coroutines(stack: Stack) -> None:
    """AsyncClient.start takes them too."""

    async def both() -> list[str]:
        async with AsyncClient(stack.settings) as client:
            one_run = await client.start(one(), {"n": 1}, singleton="k", delay=60)
            return [one_run.id, (await client.start(one(), {"n": 1}, singleton="k")).id]

    first, second = asyncio.run(both())
    assert first == second
    eventually(lambda: stack.client.get(first).state is RunState.PENDING)
