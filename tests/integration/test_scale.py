"""A journal with a long past: whatever is listed, shown, counted, ticked or moved, costs the same as in a short one.

The law: no statement touches more than a few hundred pages of tables that have thousands, or a few for each run that it
moves; and no node of a plan of a list, a page or the tick scans runs, steps or events as a whole. Each statement is
explained where it is asked, on the connection that asks it (pages.py). SCALE_RUNS=1000000 takes the size of the promise
(a quarter of an hour); the pages are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import growing
import pytest
import redis
import steps
from pages import Touched, watched
from stack import Stack, eventually, stack_of

from trellis.tasks.database import PLANNER
from trellis.tasks.embedded import Servers
from trellis.workflows import Client, Debounce, Singleton, Workflow, recovery
from trellis.workflows.admission import SQL as LIMITS
from trellis.workflows.records import Outcome
from trellis.workflows.retention import Purge
from trellis.workflows.states import RunState, StepState
from trellis.workflows.summaries import Summaries
from trellis.workflows.trimming import Trim

RUNS = int(os.environ.get("SCALE_RUNS", "10000"))
PAGES = 200  # of the tables: with 10,000 runs `step` has 1,000, with a million 100,000
ROWS = (
    1000  # that one node of a plan reads of these tables, which have ten times as many, or a thousand times
)
GROWN = ("run", "step", "event")
EACH = 80  # more for each run that a statement moves with all it has
# A tick looks at 500 limits that somebody waits for, and at 500 places, however many there are.
SWEEP = {LIMITS[name].decode(): 2000 for name in ("lines", "look", "forget", "forget_some")}

FILL = Path(__file__).parents[1] / "support" / "past.sql"


@pytest.fixture(scope="module")
def old(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A journal with a past, analysed, so that the planner knows how long it is."""
    folder: Path = tmp_path_factory.mktemp("old")
    with redis.Redis.from_url(servers.redis.url(99)) as client:
        client.flushdb()
    for stack in stack_of(servers, template, "old", 99, folder):
        with stack.connect() as connection:
            connection.execute(FILL.read_text().replace("{runs}", str(RUNS)).encode())
            connection.execute("VACUUM ANALYZE")
        yield stack


def judge(touched: list[Touched], *, runs: int = 0) -> None:
    """No statement reads a table that has grown as a whole, nor much of one in whatever way."""
    assert touched, "nothing was asked"
    most = PAGES + runs * EACH
    bad = [
        each
        for each in touched
        if each.pages > SWEEP.get(each.statement, most) or any(read > 100 for read in each.scanned.values())
    ]
    assert not bad, "\n".join(f"{each.pages} pages, scans {each.scanned}: {each.statement}" for each in bad)


def whole(touched: list[Touched]) -> list[str]:
    """The nodes of plans that scan runs, steps or events as a whole: by their kind, or by what they have read."""
    return [
        f"{read.node} of {read.rows} rows of {read.table}: {each.statement}"
        for each in touched
        for read in each.reads
        if read.table in GROWN and (read.whole or read.rows > ROWS)
    ]


def one(stack: Stack, state: str) -> str:
    """The id of a run in the middle of the past."""
    rows = stack.rows(f"SELECT id FROM run WHERE state = '{state}' ORDER BY id OFFSET {RUNS // 500} LIMIT 1")
    return str(rows[0][0])


def middle(stack: Stack) -> str:
    return str(stack.rows(f"SELECT id FROM run ORDER BY id OFFSET {RUNS // 2} LIMIT 1")[0][0])


LISTS: dict[str, Callable[[Client, str], object]] = {
    "all": lambda client, at: client.list(),
    "page": lambda client, at: client.list(before=at),
    "workflow": lambda client, at: client.list("past3"),
    "workflow, page": lambda client, at: client.list("past3", before=at),
    "state": lambda client, at: client.list(state="running"),
    "state, page": lambda client, at: client.list(state="cancelled", before=at),
    "workflow and state": lambda client, at: client.list("past8", state="running"),
    "workflow and a state that it never has": lambda client, at: client.list("past3", state="running"),
    "no such workflow": lambda client, at: client.list("nobody", state="failed"),
    "dead letters": lambda client, at: client.dead_letters(),
    "dead letters of a workflow": lambda client, at: client.dead_letters("past4"),
    "dead letters of another": lambda client, at: client.dead_letters("nobody"),
    "approvals": lambda client, at: client.approvals(limit=20),
    "doubts": lambda client, at: client.doubts(limit=20),
    "doubts of a run": lambda client, at: client.doubts(at),
    "tag": lambda client, at: client.list(tags=["all"], limit=20),
    "tag, page": lambda client, at: client.list(tags=["all"], before=at, limit=20),
    "tags": lambda client, at: client.list(tags=["all", "t50"], limit=10),
    "tags, of which one is nobody's": lambda client, at: client.list(tags=["all", "nobody"]),
    "tag and a workflow": lambda client, at: client.list("past0", tags=["all"], limit=10),
    "tag and a state": lambda client, at: client.list(state="succeeded", tags=["all"], limit=10),
    "tag and a state that it never has": lambda client, at: client.list(state="paused", tags=["all"]),
    "since": lambda client, at: client.list(since=timedelta(days=1)),
    "workflow, state and since": lambda client, at: client.list(
        "past3", state="succeeded", since=timedelta(days=9999)
    ),
    "count": lambda client, at: client.count("past3", state="succeeded", at_most=500),
    "count of a tag": lambda client, at: client.count(tags=["t50"], at_most=20),
    "count of nobody's": lambda client, at: client.count("past3", state="paused"),
    "bulk, counted": lambda client, at: client.bulk("resume", "past3", dry_run=True),
    "a key": lambda client, at: client._queries.run_by_key("past7", "k7"),
    "a schedule": lambda client, at: client.schedules.get("at7"),
    "schedules of a workflow that has none": lambda client, at: client.schedules.list("nobody"),
    "pauses": lambda client, at: client.pauses(),
    "retentions": lambda client, at: client.retentions(),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_costs_its_page(old: Stack, name: str) -> None:
    """Whatever it is filtered by."""
    at = middle(old)
    with watched() as touched:
        LISTS[name](old.client, at)
    judge(touched)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "running", "pending"])
def test_a_run_costs_itself_to_look_at(old: Stack, state: str) -> None:
    """Its steps, results, events, counts; what the commands show of it; why it does not move."""
    run = one(old, state)
    with watched() as touched:
        look_at(old.client, run)
        if state == "succeeded":
            old.client.result(run)
            old.client.result(run, "s1")
    judge(touched)


def look_at(client: Client, run: str) -> None:
    """What the client and the commands show of a run."""
    for ask in (client.get, client.steps, client.progress, client.events, client.definition, client.linked):
        ask(run)
    client.why(run)
    client.approvals(run)
    client.dead_letters_of(run)
    summaries = Summaries(client.database)
    summaries.find(run[:13])
    summaries.age(run)
    summaries.nodes(run, 20)
    summaries.running(run, 20)
    summaries.incidents(run, 20)
    summaries.incidents(run, 20, kind="step.failed")
    summaries.endings(run, 5, 100)
    summaries.states(run)
    summaries.needs(run, 20)


def test_what_a_screen_begins_with_costs_little(old: Stack) -> None:
    """The names of the workflows, the last tick, the means of the actions, the newest definition."""
    summaries = Summaries(old.client.database)
    with watched() as touched:
        summaries.workflows()
        summaries.silence()
        old.engine.journal.durations()
        old.client._queries.latest_definition("past3")
    judge(touched)


def test_a_tick_costs_what_is_due(old: Stack) -> None:
    """Nothing is, here: thousands of ready, running and parked steps lie in wait."""
    recovery.tick(old.engine)
    with watched() as touched:
        recovery.tick(old.engine)
    judge(touched)


def ask_everything(stack: Stack, at: str) -> None:
    """All lists, the pages of a run, the tick."""
    for ask in LISTS.values():
        ask(stack.client, at)
    look_at(stack.client, at)
    recovery.tick(stack.engine)


def test_no_node_of_a_plan_scans_a_whole_table(old: Stack) -> None:
    """Of lists, pages and the tick; the plans are generic, as those of production are."""
    at = middle(old)
    with watched() as touched:
        ask_everything(old, at)
    assert whole(touched) == []
    reads = [read for each in touched for read in each.reads]
    assert {read.table for read in reads} >= set(GROWN)
    assert any(read.generic for read in reads)


def test_nothing_is_scanned_as_a_whole_while_nobody_explains(old: Stack) -> None:
    """By the counters of Postgres, on connections with the options of production: these plans are what is used."""
    at = middle(old)
    before = scans(old)
    for database in (old.client.database, old.engine.database):
        with database.connection() as connection:
            rows = connection.execute(
                "SELECT name, setting FROM pg_settings WHERE source = 'client'"
            ).fetchall()
        assert dict(rows).items() >= dict(each.split("=") for each in PLANNER.split() if each != "-c").items()
    ask_everything(old, at)
    assert scans(old) == before
    old.rows("SELECT count(*) FROM step WHERE name = 'nobody'")
    assert scans(old)["step"] > before["step"]  # they do count


def scans(stack: Stack) -> dict[str, int]:
    """How often each table was scanned so far. A session tells it at its end at the latest, so all of them end."""
    for database in (stack.client.database, stack.engine.database):
        database.close()
    mine = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    eventually(lambda: not stack.rows(f"SELECT FROM pg_stat_activity WHERE {mine}"))
    return dict(
        stack.rows(
            "SELECT relname::text, seq_scan FROM pg_stat_user_tables WHERE relname = ANY(%s)", [*GROWN]
        )
    )


def test_a_new_run_costs_itself(old: Stack) -> None:
    """Accepting, claiming, completing, signalling, cancelling."""
    wf = Workflow("new", register=False)
    first = wf.step("first", steps.noop, expect=1)
    wf.step("second", steps.noop, after=[first], expect=2)
    wf.step("other", steps.noop, expect=4)
    with watched() as touched:
        run = old.client.start(wf, key="one").id
        old.engine.run_bundle("noop", run, [0])
        old.engine.run_bundle("noop", run, [1], old.settings.default_queue)
        old.engine.run_bundle("noop", run, [2], old.settings.default_queue)
        assert old.client.get(run).state is RunState.SUCCEEDED
        other = old.client.start(wf).id
        claimed = old.engine.journal.claim(other, [0], "w")[0][0]
        late = Outcome(claimed.idx, "01a1f80c-cf3a-7686-8674-c566556c6650", StepState.SUCCEEDED)
        old.engine.journal.complete(other, [late])
        old.engine.journal.release(other, [claimed])
        old.client.cancel(other)
    judge(touched)


def test_an_old_run_costs_itself_to_move(old: Stack) -> None:
    """A signal, a retry, a discarded dead letter, a cancel."""
    running, failed, another = one(old, "running"), one(old, "failed"), old.client.list(state="failed")[0].id
    with watched() as touched:
        old.client.signal(running, "go", 1)
        old.client.retry(failed)
        old.client.discard(another)
        old.client.cancel(running)
    judge(touched)


def test_a_start_that_looks_for_another_run_costs_itself(old: Stack) -> None:
    """A singleton whose window is over, however often it ran; one that stands; debounced; later; under a known key."""
    wf = Workflow("past9", register=False)
    wf.step("only", steps.noop)
    with watched() as touched:
        first = old.client.start(wf, singleton=Singleton("one", window=5)).id
        assert old.client.start(wf, singleton="one").id == first
        old.client.cancel(first)
        assert old.client.start(wf, singleton=Singleton("one", window=60)).id == first
        old.client.start(wf, debounce=Debounce("one", wait=60))
        old.client.start(wf, debounce=Debounce("one", wait=60))
        old.client.start(wf, delay=60)
        old.client.start(wf, key="a")
        old.client.start(wf, key="a")
    judge(touched)


def test_a_limit_costs_those_in_front_of_it(old: Stack) -> None:
    """Taking a place, waiting, passing it on: beside thousands of other limits, each with a holder and a waiter."""
    wf = Workflow("limited", register=False, concurrency_key="runs", limit=2)
    for name in ("first", "second", "third"):
        wf.step(name, steps.noop, concurrency_key="mine", limit=1)
    with watched() as touched:
        runs = [old.client.start(wf).id for _ in range(3)]
        recovery.tick(old.engine)
        for run in runs:
            old.drain(run)
            recovery.tick(old.engine)
        assert {old.client.get(run).state for run in runs} == {RunState.SUCCEEDED}
    judge(touched)


def test_growth_costs_what_is_added(old: Stack) -> None:
    """A map, and a body that appends."""
    wf = Workflow("grown", register=False)
    wf.map("each", steps.noop, over=list(range(20)))
    wf.step("more", growing.plan, parts=[{"steps": {"a": {"action": "noop"}}}])
    with watched() as touched:
        run = old.client.start(wf).id
        old.drain(run)
        assert old.client.get(run).state is RunState.SUCCEEDED
    judge(touched, runs=5)  # a bundle has the steps of five runs


def test_pauses_cost_what_they_pause(old: Stack) -> None:
    """A workflow without open runs, a queue, a run."""
    run = one(old, "running")
    with watched() as touched:
        old.client.pause(workflow="past3")
        recovery.tick(old.engine)
        old.client.resume(workflow="past3")
        old.client.pause(queue="past")
        recovery.tick(old.engine)
        old.client.resume(queue="past")
        old.client.pause(run)
        old.client.resume(run)
    judge(touched)


def test_a_schedule_costs_its_tick(old: Stack) -> None:
    """Made, due, fired, paused, filled in, deleted: beside thousands of others."""
    wf = Workflow("scheduled", register=False)
    wf.step("only", steps.noop)
    schedules = old.client.schedules
    with watched() as touched:
        schedules.create("mine", wf, every=3600)
    judge(touched)
    old.rows("UPDATE schedule SET next_at = now(), due_at = now() WHERE name = 'mine'")
    with watched() as touched:
        recovery.tick(old.engine)
        assert schedules.get("mine").started == 1
        schedules.pause("mine")
        schedules.resume("mine")
        schedules.trigger("mine")
        now = datetime.now(UTC)
        schedules.backfill("mine", now - timedelta(hours=3), now)
        schedules.delete("mine")
    judge(touched)


def test_a_purge_costs_what_it_deletes(old: Stack) -> None:
    """A hundred runs at a time; and where nothing is due, nothing, though children of living runs are old enough."""
    old.client.retain("past6", timedelta(seconds=RUNS - 150 * 10))
    purge = Purge(old.engine.database, old.settings)
    with watched() as touched:
        assert purge.expired() > 100
    judge(touched, runs=100)
    with watched() as touched:
        assert purge.expired() == 0
        old.client.delete(one(old, "cancelled"))
    judge(touched)


def test_a_purge_of_events_costs_the_runs_that_it_trims(old: Stack) -> None:
    """A hundred at a time, from where the last one came to; and where nothing is due, nothing."""
    old.client.retain("past5", events=timedelta(seconds=RUNS - 150 * 10))
    trim = Trim(old.engine.database, old.settings)
    with watched() as touched:
        assert trim.outlived() == 100
        assert trim.outlived() > 10
    judge(touched, runs=100)
    assert whole(touched) == []
    with watched() as touched:
        assert trim.outlived() == 0
    judge(touched)


def test_pages_tell_a_scan_from_a_look(old: Stack) -> None:
    """The measure itself: a count of all steps is refused, and so is a walk along an index to the end."""
    with watched() as touched, old.engine.database.connection() as connection:
        connection.execute("SELECT count(*) FROM step WHERE name = 'nobody'")
        connection.execute("SELECT id FROM run WHERE correlation_id = 'nobody' ORDER BY id LIMIT 1")
        connection.execute("SELECT id FROM run ORDER BY id LIMIT 1")
    assert [each.pages > PAGES for each in touched] == [True, True, False]
    assert [bool(whole([each])) for each in touched] == [True, True, False]
    with pytest.raises(AssertionError, match="pages"):
        judge(touched)
