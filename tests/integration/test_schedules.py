"""Schedules on a real database: every tick fires once, whoever dies, and the policies do what they say."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import steps
from stack import SUPPORT, Stack, eventually

from trellis.tasks.app import sender
from trellis.tasks.database import PLANNER
from trellis.tasks.errors import ConflictError, DefinitionError, NotFound, ParameterError
from trellis.workflows import AsyncClient, Param, Workflow, launch, registry, schedules
from trellis.workflows.almanac import SQL, Schedule
from trellis.workflows.engine import Engine
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState


def flow(name: str = "nightly") -> Workflow:
    wf = Workflow(name, params={"at": Param(str, default="")}, register=False)
    wf.step("say", steps.returns, value=wf.params.at)
    return wf


def late(stack: Stack, name: str, seconds: float) -> datetime:
    """As if no tick of beat had come for a while; answers with the first tick that nobody handled."""
    schedule = stack.client.schedules.get(name)
    [(now,)] = stack.rows("SELECT clock_timestamp()")
    first = schedule.timetable.first(now - timedelta(seconds=seconds))
    stack.rows("UPDATE schedule SET next_at = %s, due_at = %s WHERE name = %s", first, first, name)
    assert first is not None
    return first


def keys(stack: Stack) -> list[str]:
    return [key for (key,) in stack.rows("SELECT key FROM run ORDER BY key")]


def expected(schedule: Schedule, first: datetime, before: datetime) -> list[str]:
    ticks = schedule.timetable.between(first, before)
    return [f"schedule:{schedule.name}:{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" for tick in ticks]


def end_all(stack: Stack) -> None:
    for (run,) in stack.rows("SELECT id::text FROM run WHERE state IN ('pending', 'running')"):
        stack.client.cancel(run)


def test_ticks_at_once_fire_each_tick_once_and_leave_none_out(stack: Stack) -> None:
    """Eight beats at the same moment, three schedules, 40 ticks that nobody handled: 120 runs, one a tick."""
    for name in "abc":
        stack.client.schedules.create(name, flow(), every=3600, overlap="allow", catch_up=timedelta(days=9))
    firsts = {name: late(stack, name, 40 * 3600) for name in "abc"}
    gate = threading.Barrier(8)
    engines = [Engine(stack.settings, sender(stack.broker_url)) for _ in range(8)]

    def beat(engine: Engine) -> None:
        gate.wait()
        for _ in range(10):
            schedules.fire(engine)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(beat, engines))
    for engine in engines:
        engine.database.close()
    after = {each.name: each for each in stack.client.schedules.list()}
    wanted = [key for name in "abc" for key in expected(after[name], firsts[name], after[name].next_at)]  # type: ignore[arg-type]
    assert keys(stack) == wanted
    assert len(wanted) == 120
    assert [after[name].started for name in "abc"] == [40, 40, 40]


KILLED = """
import os, signal, sys
from trellis.workflows import launch, schedules
from trellis.workflows.engine import engine
import steps
write, count = launch.write, [0]
def then_die(*arguments, **options):
    done = write(*arguments, **options)
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
launch.write = then_die
schedules.fire(engine())
"""


def test_a_beat_killed_between_run_and_commit_leaves_the_ticks_to_the_next(stack: Stack) -> None:
    """SIGKILL with three runs written and not committed: nothing of them is there; the next tick fires them all."""
    made = stack.client.schedules.create("killed", flow(), every=60, overlap="allow", catch_up=86_400)
    first = late(stack, "killed", 300)
    child = subprocess.run(
        [sys.executable, "-c", KILLED], env=stack.environment(), cwd=SUPPORT, capture_output=True, timeout=60
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert keys(stack) == []
    eventually(lambda: schedules.fire(stack.engine), what="the dead process' lock is gone")
    schedules.fire(stack.engine)
    now = stack.client.schedules.get("killed")
    assert keys(stack) == expected(made, first, now.next_at)  # type: ignore[arg-type]
    assert len(keys(stack)) >= 5


def test_a_lost_backend_and_a_commit_that_nobody_heard_of_fire_no_tick_twice(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres ends the connection after the run is written; afterwards the tick is due again, and fires once."""
    stack.client.schedules.create("lost", flow(), every=3600, catch_up=86_400)
    late(stack, "lost", 3600)
    write = launch.write

    def and_lose(journal: Any, connection: psycopg.Connection[Any], *rest: Any, **options: Any) -> bool:
        done = write(journal, connection, *rest, **options)
        stack.rows("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        return done

    monkeypatch.setattr(launch, "write", and_lose)
    schedules.fire(stack.engine)
    assert keys(stack) == []
    monkeypatch.undo()
    problem = stack.client.schedules.get("lost").problem
    assert problem is not None
    assert "AdminShutdown" in problem
    stack.rows("UPDATE schedule SET due_at = now()")  # it was put off for some seconds
    assert schedules.fire(stack.engine) == 1
    # The commit that was not heard of: the tick is handled again, and its run is there already.
    stack.rows("UPDATE schedule SET next_at = last_at, due_at = last_at")
    assert schedules.fire(stack.engine) == 0
    assert len(keys(stack)) == 1
    assert stack.client.schedules.get("lost").problem is None


def test_a_gap_is_made_up_for_within_the_window_and_told_beyond_it(stack: Stack) -> None:
    """Three hours without beat and a window of one: the ticks of the last hour fire, `missed_at` says since when."""
    made = stack.client.schedules.create("gap", flow(), every=600, overlap="allow", catch_up=3600)
    first = late(stack, "gap", 3 * 3600)
    schedules.fire(stack.engine)
    after = stack.client.schedules.get("gap")
    assert after.missed_at == first
    assert len(keys(stack)) == 6
    assert keys(stack) == expected(made, first, after.next_at)[-6:]  # type: ignore[arg-type]


def test_a_tick_whose_run_is_committed_and_not_announced_is_announced_by_the_next(stack: Stack) -> None:
    """Firing only writes; the whole tick publishes, and a worker's claim finds the step."""
    stack.client.schedules.create("plain", flow(), every=3600)
    late(stack, "plain", 3600)
    schedules.fire(stack.engine)
    [run] = stack.client.list()
    assert stack.rows("SELECT sent, state FROM step") == [(False, "ready")]
    tick(stack.engine)
    assert stack.rows("SELECT sent, state FROM step") == [(True, "ready")]
    stack.drain(run.id)
    assert stack.client.get(run).state is RunState.SUCCEEDED


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel", "allow"])
def test_what_a_tick_does_while_a_run_is_open(stack: Stack, overlap: str) -> None:
    """skip: nothing; queue: it waits for the end; cancel: the old one ends; allow: both are open."""
    begin = datetime.now(UTC) - timedelta(seconds=1800)
    stack.client.schedules.create("s", flow(), every=3600, overlap=overlap, anchor=begin)
    late(stack, "s", 2000)
    schedules.fire(stack.engine)
    stack.rows("UPDATE schedule SET anchor = anchor + interval '10 minutes'")
    late(stack, "s", 2000)
    schedules.fire(stack.engine)
    states = sorted(run.state.value for run in stack.client.list())
    after = stack.client.schedules.get("s")
    assert (states, after.queued, after.skipped) == {
        "skip": (["pending"], 0, 1),
        "queue": (["pending"], 1, 0),
        "cancel": (["cancelled", "pending"], 0, 0),
        "allow": (["pending", "pending"], 0, 0),
    }[overlap]
    end_all(stack)
    schedules.fire(stack.engine)
    assert len(stack.client.list()) == (1 if overlap == "skip" else 2)
    assert stack.client.schedules.get("s").queued == 0


def test_a_queue_runs_in_order_and_one_at_a_time(stack: Stack) -> None:
    """Five ticks that came together: one run after the other, the oldest first."""
    made = stack.client.schedules.create(
        "line", flow(), every=60, overlap="queue", tick_param="at", timezone="Asia/Tokyo"
    )
    first = late(stack, "line", 295)
    for count in range(1, 6):
        schedules.fire(stack.engine)
        schedules.fire(stack.engine)
        assert len(stack.client.list()) == count
        stack.drain(stack.client.list()[0].id)
    told = [stack.client.result(run, "say") for run in reversed(stack.client.list())]
    ticks = [first + n * timedelta(seconds=60) for n in range(5)]
    assert [datetime.fromisoformat(text) for text in told] == ticks
    assert all(text.endswith("+09:00") for text in told)
    assert made.tick_param == "at"


def test_cancel_ends_nothing_where_the_new_run_cannot_start(stack: Stack) -> None:
    """The definition needs an action that this process does not know any more: the old run goes on."""
    name = "short_lived"
    steps.action(name=name)(steps.noop.contract.function)
    wf = Workflow("fragile", register=False)
    wf.step("a", name)
    stack.client.schedules.create("s", wf, every=3600, overlap="cancel")
    late(stack, "s", 3600)
    schedules.fire(stack.engine)
    registry.actions.discard(name)
    late(stack, "s", 10)
    stack.rows("UPDATE schedule SET next_at = now(), due_at = now()")
    schedules.fire(stack.engine)
    assert [run.state for run in stack.client.list()] == [RunState.PENDING]


def test_a_schedule_that_this_worker_cannot_start_does_not_hold_up_the_others(stack: Stack) -> None:
    """It says what is wrong, keeps its tick, and fires once a worker that knows the action ticks."""
    steps.action(name="elsewhere")(steps.noop.contract.function)
    info = registry.actions.get("elsewhere")
    wf = Workflow("foreign", register=False)
    wf.step("a", "elsewhere")
    stack.client.schedules.create("a_first", wf, every=3600)
    stack.client.schedules.create("b_second", flow(), every=3600)
    registry.actions.discard("elsewhere")
    for name in ("a_first", "b_second"):
        late(stack, name, 3600)
    assert schedules.fire(stack.engine) == 1
    found = stack.client.schedules.get("a_first")
    assert "there is no action 'elsewhere'" in (found.problem or "")
    assert info is not None
    registry.actions.add(info)
    stack.rows("UPDATE schedule SET due_at = now() WHERE name = 'a_first'")
    assert schedules.fire(stack.engine) == 1
    registry.actions.discard("elsewhere")
    assert len(stack.client.list("foreign")) == 1
    assert stack.client.schedules.get("a_first").problem is None


def test_a_schedule_keeps_the_definition_that_it_was_made_with(stack: Stack) -> None:
    """By digest: what the process has under the workflow's name now is another matter, until it is replaced."""
    made = stack.client.schedules.create("s", flow(), every=3600, overlap="allow")
    changed = flow()
    changed.step("more", steps.noop)
    late(stack, "s", 3600)
    schedules.fire(stack.engine)
    with pytest.raises(ConflictError, match="another schedule 's'"):
        stack.client.schedules.create("s", changed, every=3600, overlap="allow")
    after = stack.client.schedules.create("s", changed, every=3600, overlap="allow", replace=True)
    assert after.next_at == stack.client.schedules.get("s").next_at
    late(stack, "s", 10)
    stack.rows("UPDATE schedule SET next_at = now(), due_at = now()")
    schedules.fire(stack.engine)
    assert {run.steps for run in stack.client.list()} == {1, 2}
    assert after.definition != made.definition


def test_the_same_schedule_again_changes_nothing_and_another_timetable_begins_now(stack: Stack) -> None:
    """Idempotent, so that every worker may make it; a pause stays."""
    first = stack.client.schedules.create("s", flow(), every=3600)
    stack.client.schedules.pause("s")
    again = stack.client.schedules.create("s", flow(), every=3600)
    assert (again.anchor, again.next_at, again.paused) == (first.anchor, first.next_at, True)
    daily = stack.client.schedules.create(
        "s", flow(), cron="0 3 * * *", timezone="Europe/Berlin", replace=True
    )
    assert daily.paused
    assert daily.next_at is not None
    assert daily.next_at.astimezone(UTC).hour in (1, 2)
    assert daily.upcoming() == []
    resumed = stack.client.schedules.resume("s")
    assert resumed.upcoming(3)[0] == resumed.next_at


def test_a_paused_schedule_starts_nothing_and_goes_on_from_now(stack: Stack) -> None:
    """What fell into the pause is not made up for."""
    stack.client.schedules.create("s", flow(), every=60, overlap="allow")
    stack.client.schedules.pause("s")
    late(stack, "s", 600)
    assert schedules.fire(stack.engine) == 0
    resumed = stack.client.schedules.resume("s")
    assert schedules.fire(stack.engine) == 0
    assert resumed.next_at is not None
    assert resumed.next_at >= stack.rows("SELECT now()")[0][0] - timedelta(seconds=60)
    assert stack.client.schedules.get("s").missed_at is None


def test_trigger_starts_a_run_now_whatever_the_policy_says(stack: Stack) -> None:
    """Also while it is paused; later ticks see it as an open run."""
    stack.client.schedules.create("s", flow(), every=3600)
    stack.client.schedules.pause("s")
    one, two = (stack.client.schedules.trigger("s") for _ in range(2))
    assert one.id != two.id
    assert (one.key or "").startswith("schedule:s:by-hand:")
    stack.client.schedules.resume("s")
    late(stack, "s", 3600)
    assert schedules.fire(stack.engine) == 0
    assert stack.client.schedules.get("s").skipped == 1
    tick(stack.engine)
    stack.drain(one.id)
    assert stack.client.get(one).state is RunState.SUCCEEDED


def test_a_backfill_runs_the_ticks_that_have_no_run_one_after_the_other(stack: Stack) -> None:
    """Six past hours of which two have run: four runs, in order, also while the schedule is paused."""
    made = stack.client.schedules.create("s", flow(), cron="0 * * * *", tick_param="at", catch_up=86_400)
    [(now,)] = stack.rows("SELECT date_trunc('hour', now())")
    stack.rows("UPDATE schedule SET next_at = %s, due_at = %s", *(now - timedelta(hours=3),) * 2)
    schedules.fire(stack.engine)
    stack.drain(stack.client.list()[0].id)
    stack.client.schedules.pause("s")
    begin = now - timedelta(hours=6)
    assert stack.client.schedules.backfill("s", begin, now) == 6
    assert stack.client.schedules.backfill("s", begin, now) == 6
    assert stack.client.schedules.get("s").queued == 6
    while stack.client.schedules.get("s").queued:
        schedules.fire(stack.engine)
        stack.drain(stack.client.list()[0].id)
    assert keys(stack) == expected(made, begin, now)
    assert {run.state for run in stack.client.list()} == {RunState.SUCCEEDED}
    by_time = [run.params["at"] for run in reversed(stack.client.list())][1:]
    assert by_time == sorted(by_time)


def test_a_backfill_that_is_too_large_or_vague_is_refused_whole(stack: Stack) -> None:
    """Nothing is queued then."""
    stack.client.schedules.create("s", flow(), every=1)
    with pytest.raises(DefinitionError, match="more than 10,000 ticks"):
        stack.client.schedules.backfill(
            "s", datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
        )
    with pytest.raises(DefinitionError, match="needs a time zone"):
        stack.client.schedules.backfill("s", datetime(2020, 1, 1), datetime(2020, 1, 2))
    assert stack.client.schedules.get("s").queued == 0


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"name": "two words"}, DefinitionError, "a name has up to 200 letters"),
        ({"overlap": "replace"}, DefinitionError, "overlap 'replace' is not one of"),
        ({"tick_param": "att"}, DefinitionError, "has no parameter 'att'; did you mean 'at'"),
        ({"params": {"at": 5}}, ParameterError, "parameter 'at'"),
        ({"params": {"to": "x"}}, ParameterError, "parameter 'to': does not exist"),
        ({"anchor": datetime(2026, 1, 1)}, DefinitionError, "not a datetime with a time zone"),
        ({"catch_up": 0}, DefinitionError, "catch_up 0"),
        ({"every": None, "cron": "61 * * * *"}, DefinitionError, "its minute cannot be read"),
        ({"workflow": "nowhere"}, NotFound, "there is no workflow 'nowhere'"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    stack: Stack, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    """At `create`, naming the field and the fix."""
    given: dict[str, Any] = {"name": "s", "workflow": flow(), "every": 60} | options
    with pytest.raises(error) as caught:
        stack.client.schedules.create(given.pop("name"), given.pop("workflow"), **given)
    assert told in str(caught.value)
    assert stack.client.schedules.list() == []


def test_a_schedule_that_is_not_there(stack: Stack) -> None:
    """Every verb says so, with the names that are."""
    stack.client.schedules.create("nightly", flow(), every=60)
    verbs = stack.client.schedules
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for verb in (verbs.get, verbs.pause, verbs.resume, verbs.delete, verbs.trigger):
        with pytest.raises(NotFound, match="did you mean 'nightly'"):
            verb("nigtly")
    with pytest.raises(NotFound, match="did you mean 'nightly'"):
        verbs.backfill("nigtly", moment, moment)
    verbs.delete("nightly")
    assert verbs.list() == []


def test_the_verbs_for_coroutines(stack: Stack) -> None:
    """The same, awaited."""

    async def all_of_them() -> list[Any]:
        async with AsyncClient(stack.settings) as client:
            verbs = client.schedules
            made = await verbs.create("s", flow(), every=60)
            moment = datetime(2026, 1, 1, tzinfo=UTC)
            found = [
                (await verbs.pause("s")).paused,
                (await verbs.resume("s")).paused,
                await verbs.backfill("s", moment, moment + timedelta(minutes=3)),
                (await verbs.trigger("s")).workflow,
                [each.name for each in await verbs.list()],
                (await verbs.get("s")).anchor == made.anchor,
            ]
            await verbs.delete("s")
            return [*found, await verbs.list()]

    assert asyncio.run(all_of_them()) == [True, False, 3, "nightly", ["s"], True, []]


DECLARING = """
from datetime import timedelta
from trellis.workflows import Workflow
import steps

wf = Workflow("declared")
wf.step("a", steps.noop)
wf.schedule(every=timedelta(seconds=1))
wf.schedule("declared-daily", cron="0 3 * * *", timezone="Europe/Berlin")
"""


@pytest.fixture
def declaring(stack: Stack) -> dict[str, str]:
    """The environment of a worker whose module declares schedules."""
    (stack.folder / "declaring.py").write_text(DECLARING)
    return {"TRELLIS_IMPORTS": "declaring", "PYTHONPATH": f"{SUPPORT}:{stack.folder}"}


def test_a_worker_makes_the_schedules_that_its_modules_declare(
    stack: Stack, declaring: dict[str, str]
) -> None:
    """With a real beat: it fires, again and again; a second worker changes nothing."""
    stack.worker("first", **declaring)
    before = stack.client.schedules.list()
    assert [each.name for each in before] == ["declared", "declared-daily"]
    stack.worker("second", **declaring)
    assert [each.anchor for each in stack.client.schedules.list()] == [each.anchor for each in before]
    stack.beat()
    eventually(lambda: len(stack.client.list("declared", state="succeeded")) >= 3)
    runs = [key for key in keys(stack) if key]
    assert len(runs) == len(set(runs))


def test_a_declaration_is_checked_where_it_is_written() -> None:
    """Not when the worker starts."""
    wf = flow("declares")
    with pytest.raises(DefinitionError, match="schedule 'declares': cron '0 3' has 2 fields"):
        wf.schedule(cron="0 3")
    wf.schedule("taken", every=60)
    try:
        with pytest.raises(DefinitionError, match="declared twice, by workflow 'declares'"):
            flow("other").schedule("taken", every=60)
    finally:
        registry.schedules.discard("taken")


def test_the_look_for_due_schedules_reads_indexes_only(stack: Stack) -> None:
    """Its cost is what is due, not how many schedules and runs there are."""
    stack.client.schedules.create("s", flow(), every=3600)
    stack.rows(
        "INSERT INTO schedule (name, workflow, definition, params, every, timezone, anchor, jitter, overlap, catch_up, "
        "next_at, due_at) SELECT 's' || n, workflow, definition, params, every, timezone, anchor, jitter, overlap, "
        "catch_up, next_at, due_at FROM schedule, generate_series(1, 5000) AS n"
    )
    with stack.connect() as connection:
        for option in PLANNER.split("-c ")[1:]:
            setting, value = option.strip().split("=")
            connection.execute(f"SET {setting} = {value}")
        text = SQL["due"].decode().replace("%(limit)s", "200")
        shown = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {text}".encode()))
    assert "Seq Scan" not in shown, shown
    assert "schedule_due" in shown, shown
    assert "schedule_queued" in shown, shown
    assert "run_pkey" in shown, shown
