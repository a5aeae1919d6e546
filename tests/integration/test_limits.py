"""Limits on a real journal: places, lines, turns and rates, with the steps run in this process."""

from __future__ import annotations

import time

import steps
from stack import Stack

from trellis.workflows import Client, Rate, RunState, StepState, Workflow
from trellis.workflows.records import Outcome


def steps_done(idx: int, lease: str) -> Outcome:
    return Outcome(idx, lease, StepState.SUCCEEDED, b"1", ended=time.monotonic())


def states(stack: Stack, run: str) -> dict[str, str]:
    return {step.name: step.state.value for step in stack.client.steps(run)}


def ready(stack: Stack) -> list[str]:
    rows = stack.rows("SELECT name FROM step WHERE state = 'ready' ORDER BY run_id, idx")
    return [row[0] for row in rows]


def keyed(key: str = "customer:{params.id}", limit: int | None = 1, **options: object) -> Workflow:
    """Three independent steps behind one key."""
    wf = Workflow("keyed", params={"id": int}, register=False)
    for name in ("a", "b", "c"):
        wf.step(name, steps.noop, concurrency_key=key, limit=limit, **options)  # type: ignore[arg-type]
    return wf


def test_a_key_lets_in_as_many_as_its_limit(stack: Stack) -> None:
    """The others are parked; each that ends lets the next one in, over all runs with that key."""
    wf = keyed(limit=2)
    one, two = stack.client.start(wf, {"id": 7}).id, stack.client.start(wf, {"id": 7}).id
    other = stack.client.start(wf, {"id": 8}).id
    assert ready(stack) == ["a", "b", "a", "b"]
    assert set(states(stack, two).values()) == {"parked"}
    stack.engine.run_bundle("noop", one, [0])
    assert states(stack, one) == {"a": "succeeded", "b": "ready", "c": "ready"}
    for run in (one, two, other):
        stack.drain(run)
        assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.rows("SELECT * FROM permit") == []


def test_a_step_freed_by_another_goes_to_the_line_and_not_to_run_ahead(stack: Stack) -> None:
    """Known to be short, it still is not begun before it is let in; a place that is free is taken at once."""
    wf = Workflow("freed", register=False)
    for name in ("x", "y"):
        first = wf.step(name, steps.noop)
        wf.step(f"{name}2", steps.noop, after=first, concurrency_key="one", limit=1)
    run = stack.client.start(wf).id
    stack.engine.durations.measured("noop", 0.0001)
    stack.engine.durations.share()
    stack.engine.run_bundle("noop", run, [0, 2])
    assert sorted(states(stack, run).values()) == ["parked", "ready", "succeeded", "succeeded"]
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_step_that_will_be_skipped_needs_no_place(stack: Stack) -> None:
    """What a skipped step blocks passes the line, full as it is."""
    holder = keyed("k", 1)
    stack.client.start(holder, {"id": 0})
    wf = Workflow("skipping", params={"n": int}, register=False)
    first = wf.step("first", steps.noop, when="params.n > 1")
    wf.step("second", steps.noop, after=first, concurrency_key="k")
    run = stack.client.start(wf, {"n": 0}).id
    stack.drain(run)
    assert states(stack, run) == {"first": "skipped", "second": "skipped"}
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_runs_with_a_key_wait_for_their_turn(stack: Stack) -> None:
    """A run holds its place until it is over, however it ends; its roots wait, and go on to their own limits."""
    wf = Workflow("alone", params={"id": int}, concurrency_key="customer:{params.id}", register=False)
    first = wf.step("first", steps.noop)
    wf.step("beside", steps.noop, concurrency_key="beside", limit=5)
    wf.step("last", steps.noop, after=first)
    runs = [stack.client.start(wf, {"id": 1}).id for _ in range(3)]
    assert states(stack, runs[0]) == {"first": "ready", "beside": "ready", "last": "waiting"}
    assert states(stack, runs[1]) == {"first": "parked", "beside": "parked", "last": "waiting"}
    stack.drain(runs[0])
    assert stack.client.get(runs[0]).state is RunState.SUCCEEDED
    assert states(stack, runs[1]) == {"first": "ready", "beside": "ready", "last": "waiting"}
    assert states(stack, runs[2])["first"] == "parked"
    stack.client.cancel(runs[1])
    stack.engine.admission.sweep()
    stack.drain(runs[2])
    assert stack.client.get(runs[2]).state is RunState.SUCCEEDED
    assert stack.rows("SELECT * FROM permit") == []


def test_a_run_has_as_many_steps_at_once_as_it_says(stack: Stack) -> None:
    """`max_parallel` counts ordinary steps and the items of maps, each run by itself."""
    wf = Workflow("narrow", max_parallel=3, register=False)
    for name in ("a", "b"):
        wf.step(name, steps.noop)
    wf.map("each", steps.add, over=[1, 2, 3, 4], a=wf.item)
    run = stack.client.start(wf).id
    other = stack.client.start(wf).id
    assert ready(stack) == ["a", "b", "each"] * 2
    stack.engine.run_bundle("trellis.map", run, [2])
    assert states(stack, run) | {"each": "", "each[]": ""} == {
        "a": "ready", "b": "ready", "each": "", "each[]": "",
        "each[0]": "ready", "each[1]": "parked", "each[2]": "parked", "each[3]": "parked",
    }  # fmt: skip
    for each in (run, other):
        stack.drain(each)
        assert stack.client.result(each) == {"a": None, "b": None, "each": [2, 3, 4, 5]}
    assert stack.rows("SELECT * FROM permit") == []


def test_items_of_a_map_have_keys_of_their_own(stack: Stack) -> None:
    """A key may use the item, its fields and its place."""
    wf = Workflow("items", params={"region": str}, register=False)
    wf.map(
        "each", steps.returns, over=[{"of": "x"}, {"of": "x"}, {"of": "y"}], value=wf.item,
        concurrency_key=f"{wf.params.region}/{wf.item['of']}",
    )  # fmt: skip
    run = stack.client.start(wf, {"region": "eu"}).id
    stack.engine.run_bundle("trellis.map", run, [0])
    assert ready(stack) == ["each[0]", "each[2]"]
    assert {row[0] for row in stack.rows("SELECT gate FROM permit")} == {"gate:key:eu/x", "gate:key:eu/y"}
    stack.drain(run)
    assert stack.client.result(run, "each") == [{"of": "x"}, {"of": "x"}, {"of": "y"}]


def test_an_item_without_the_field_of_its_key_fails_the_map(stack: Stack) -> None:
    """The message names the item and the field."""
    wf = Workflow("odd_items", register=False)
    wf.map("each", steps.returns, over=[{"of": 1}, {}], value=wf.item, concurrency_key="{item.of}")
    run = stack.client.start(wf).id
    stack.drain(run)
    error = stack.client.get(run).error
    assert error is not None
    assert "of item 1: .of does not exist" in error["message"]


def test_tenants_take_turns_whatever_their_backlog(stack: Stack) -> None:
    """Behind the window of a queue one step of each tenant follows the other's."""
    wf = Workflow("shared", params={"n": int, "who": str}, fair_key="{params.who}", register=False)
    wf.map("each", steps.noop, over=list(range(40)))
    few = Workflow("few", params={"n": int, "who": str}, fair_key="{params.who}", register=False)
    few.map("each", steps.noop, over=list(range(5)))
    client = Client(stack.with_settings(fair_window=4))
    try:
        runs = [client.start(wf, {"n": 40, "who": "big"}).id]
        stack.engine.run_bundle("trellis.map", runs[0], [0])
        for who in ("mid", "small"):
            runs.append(client.start(few, {"n": 5, "who": who}).id)
            stack.engine.run_bundle("trellis.map", runs[-1], [0])
    finally:
        client.close()
    tenant = dict(zip(runs, ("big", "mid", "small"), strict=True))
    order: list[str] = []
    while rows := stack.rows("SELECT run_id, idx FROM step WHERE state = 'ready' AND action = 'noop'"):
        assert len(rows) <= 4
        new = [(str(run), idx) for run, idx in rows]
        for run, idx in new:
            order.append(tenant[run])
            stack.engine.run_bundle("noop", run, [idx])
    assert order[:4] == ["big"] * 4  # the window was filled before anybody else came
    assert sorted(order[4:7]) == sorted(order[7:10]) == sorted(order[10:13]) == ["big", "mid", "small"]
    assert len(order) == 50


def test_the_priority_decides_among_those_who_wait(stack: Stack) -> None:
    """Then the age of the run, then the order of the definition."""
    wf = Workflow("urgent", register=False)
    wf.step("now", steps.noop, concurrency_key="k", priority=9)
    for name, priority in (("low", 1), ("high", 9), ("mid", 5), ("mid2", 5)):
        wf.step(name, steps.noop, concurrency_key="k", priority=priority)
    run = stack.client.start(wf).id
    order = []
    while found := ready(stack):
        order += found
        [[idx]] = stack.rows("SELECT idx FROM step WHERE state = 'ready'")
        stack.engine.run_bundle("noop", run, [idx])
    assert order == ["now", "high", "mid", "mid2", "low"]


def test_a_step_passes_all_of_its_gates_or_none(stack: Stack) -> None:
    """A step that finds its second gate full goes to that line and holds no place of the first."""
    holder = keyed("k", 1)
    held = stack.client.start(holder, {"id": 0}).id
    stack.engine.run_bundle("noop", held, [0])  # b holds the key now
    wf = Workflow("both", max_parallel=1, register=False)
    wf.step("free", steps.noop, priority=9)
    wf.step("keyed", steps.noop, concurrency_key="k")
    run = stack.client.start(wf).id
    assert states(stack, run) == {"free": "ready", "keyed": "parked"}
    assert stack.rows("SELECT count(*) FROM permit WHERE run_id = %s", run) == [(1,)]
    stack.engine.run_bundle("noop", run, [0])
    assert states(stack, run)["keyed"] == "parked"
    stack.drain(held)
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.rows("SELECT * FROM permit") == []


def test_each_step_is_held_to_the_limit_that_it_states(stack: Stack) -> None:
    """The same key with two limits: a step is let in when fewer than its own limit hold places."""
    narrow, wide = keyed("k", 1), keyed("k", 3)
    one = stack.client.start(narrow, {"id": 0}).id
    two = stack.client.start(wide, {"id": 0}).id
    assert ready(stack) == ["a"]  # the older run's b stands in front and would be the second
    stack.drain(one)
    assert set(states(stack, two).values()) == {"ready"}


def test_a_retry_keeps_its_place(stack: Stack) -> None:
    """Nobody gets between the attempts of a step; a failed run gives all places back."""
    wf = Workflow("again", register=False)
    wf.step("third", steps.fails_until, ledger=stack.ledger, attempt=3, concurrency_key="k")
    other = Workflow("other", register=False)
    other.step("waits", steps.noop, concurrency_key="k")
    other.step("dies", steps.fails)
    run, waiting = stack.client.start(wf).id, stack.client.start(other).id
    stack.engine.run_bundle("fails_until", run, [0])
    assert states(stack, waiting)["waits"] == "parked"
    stack.engine.run_bundle("fails", waiting, [1])
    assert states(stack, waiting)["waits"] == "cancelled"
    stack.drain(run)
    assert stack.client.result(run, "third") == 3
    assert stack.rows("SELECT * FROM permit") == []


def test_the_sweep_finds_places_that_nobody_gave_up(stack: Stack) -> None:
    """A worker died between completing and asking; a run came with somebody's transaction: a tick asks for both."""
    wf = keyed("k", 1)
    run = stack.client.start(wf, {"id": 0}).id
    [claimed] = stack.engine.journal.claim(run, [0], "w")[0]
    stack.engine.journal.complete(run, [steps_done(claimed.idx, claimed.lease)])
    assert ready(stack) == []
    with stack.connect() as connection, connection.transaction():
        stack.client.start(keyed("other", 1), {"id": 0}, connection=connection)
    assert stack.engine.admission.sweep() == 2
    assert ready(stack) == ["b", "a"]
    assert stack.rows("SELECT count(*) FROM permit") == [(2,)]


def test_places_of_gates_that_nobody_waits_for_are_forgotten(stack: Stack) -> None:
    """A cancelled run leaves nothing behind, even where nobody comes after it."""
    wf = keyed("k", 3)
    run = stack.client.start(wf, {"id": 0}).id
    assert stack.rows("SELECT count(*) FROM permit") == [(3,)]
    stack.rows("UPDATE step SET state = 'cancelled' WHERE run_id = %s", run)
    stack.engine.admission.sweep()
    assert stack.rows("SELECT count(*) FROM permit") == [(0,)]


def test_a_rate_gives_out_one_slot_after_the_other(stack: Stack) -> None:
    """What may begin soon is announced for its moment; the rest stays in line, in order, until the next tick."""
    wf = Workflow("mail", register=False)
    wf.map("each", steps.noop, over=list(range(50)), rate=Rate("mailgun", 10, per=1.0))
    run = stack.client.start(wf).id
    stack.engine.run_bundle("trellis.map", run, [0])
    rows = stack.rows(
        "SELECT extract(epoch FROM due_at)::float8 FROM step WHERE state = 'ready' ORDER BY idx"
    )
    slots = [round(row[0] - rows[0][0], 1) for row in rows]
    assert 5 <= len(slots) <= 7  # two ticks of a quarter of a second
    assert slots == [round(0.1 * n, 1) for n in range(len(slots))]
    assert stack.rows("SELECT DISTINCT state, waits_for FROM step WHERE name LIKE 'each[%%' AND state <> 'ready' "
                      "AND action = 'noop'") == [("parked", "gate:rate:mailgun")]  # fmt: skip


def test_a_retried_run_goes_to_its_lines_again(stack: Stack) -> None:
    """Steps that are opened again have limits as before; a run's own place is its own again."""
    wf = Workflow("twice", concurrency_key="runs", register=False)
    wf.step("bad", steps.fails, concurrency_key="k")
    wf.step("never", steps.noop, after="bad", concurrency_key="k")
    run = stack.client.start(wf).id
    stack.drain(run)
    assert stack.client.get(run).state is RunState.FAILED
    assert stack.rows("SELECT * FROM permit") == []
    assert stack.client.retry(run)
    assert states(stack, run) == {"bad": "parked", "never": "waiting"}
    stack.engine.admission.sweep()
    assert stack.rows("SELECT gate, idx FROM permit ORDER BY 1") == [
        ("gate:key:k", 0),
        ("gate:runs:runs", -1),
    ]
    stack.drain(run)
    assert stack.client.get(run).state is RunState.FAILED


def test_what_waits_holds_no_place_of_its_run(stack: Stack) -> None:
    """Steps that hold no worker do not count as parallel; a child run has limits of its own."""
    child = Workflow("child", concurrency_key="children", register=False)
    child.step("only", steps.noop)
    wf = Workflow("parent", max_parallel=1, register=False)
    wf.wait_for("news", "news")
    wf.child("child", child)
    wf.step("work", steps.noop)
    run = stack.client.start(wf).id
    stack.drain(run)
    assert states(stack, run) == {"news": "parked", "child": "parked", "work": "succeeded"}
    [[inner]] = stack.rows("SELECT id FROM run WHERE parent_run = %s", run)
    stack.drain(str(inner))
    stack.client.signal(run, "news", 1)
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_slots_are_told_as_moments_of_messages(stack: Stack) -> None:
    """A step under a rate has a rank of nobody's: no other message is the right to it."""
    wf = Workflow("ranked", register=False)
    wf.step("long", steps.noop, expect=9, rate=Rate("k", 1, per=60))
    last = wf.step("first", steps.noop, expect=1)
    wf.step("second", steps.noop, after=last, expect=5)
    wf.step("short", steps.noop, expect=1)
    run = stack.client.start(wf).id
    ranks = dict(stack.rows("SELECT name, rank FROM step WHERE run_id = %s", run))
    assert ranks == {"long": None, "first": 6.0, "second": 5.0, "short": 1.0}
