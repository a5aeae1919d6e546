"""Plans: whatever the engine asks of a long journal, an index leads to it, whether or not Postgres has statistics.

The law: every statement of every .sql file is explained, and reads what it names and nothing besides (plans.py says how
that is judged), or stands below with how far it reads instead, and why that is right. A new statement is under the
strict law until somebody writes down why not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
import steps
from plans import plan, predicates, readings
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from stack import Stack, stack_of

from trellis.memory.history import Filter, page
from trellis.tasks.database import PLANNER
from trellis.tasks.embedded import Servers
from trellis.tasks.queries import load
from trellis.workflows import Workflow
from trellis.workflows.queries import RUN
from trellis.workflows.search import Search, found
from trellis.workflows.states import RunState

ROOT = Path(__file__).parents[2]
FILL = Path(__file__).parents[1] / "support" / "past.sql"
# Statements of memories have connections with other options, and tables in partitions: test_memory_plans.py.
STATEMENTS = {
    f"{file.stem}: {name}": text
    for floor, files in (("memory", "audit.sql"), ("workflows", "*.sql"))
    for file in sorted((ROOT / floor / "sql").glob(files))
    for name, text in load(f"trellis.{floor}.sql", file.name).items()
    if not text.startswith(b"COPY")
}

# How far a statement reads beyond what it names, and why that is right.
WHOLE_RUN = {
    "beginnings: clear": "a run that has not begun gets other steps",
    "beginnings: defer": "a new run begins later: all its first steps",
    "control: copy_again": "a rerun copies a run",
    "control: copy_reused": "a rerun copies a run",
    "control: delete_runs": "small runs go whole; of a large one nothing is left by then",
    "control: give_back": "somebody pauses a run: all the places that its steps held",
    "control: let_go": "a worker heard that a run was over before its bodies were",
    "control: line_up": "a new rerun waits for its turn: all its first steps",
    "control: lingers": "a run is over and to be compensated: its steps, and those of the runs below it",
    "control: open_steps": "a worker starts with code that does not fit: some of the runs that it would fail",
    "control: park_ready": "somebody pauses a run",
    "control: paused_itself": "a pause ends: what a run was told, from the end",
    "control: read_steps": "somebody reruns a run",
    "control: reopen_steps": "somebody retries a run",
    "control: trim_events": "the events of a run have outlived their time: all go, and one stays",
    "control: unpark": "somebody resumes a run",
    "why: standing": "somebody asks why a run does not move: its open steps",
    "secrets: read_steps": "somebody rotates keys: the steps of a run that has secrets, a few at a time",
    "journal: below": "a body asks for what was appended below a name",
    "journal: cancelled_tasks": "a run was cancelled, and tasks of other applications may run for it",
    "journal: claim_ranked": "the ready ranked steps of one queue, past those that wait for a retry",
    "journal: ending": "a run is over, and somebody wants its results: once",
    "journal: find": "a body asks for steps by their names",
    "journal: leased": "the commit of a claim went unheard",
    "journal: leave_all": "a run is over: all the places that it held",
    "journal: result_of": "a run is over, and a signature wants the result of one step: once",
    "journal: stop_steps": "a run is stopped: all its steps are",
}
ENTRIES = {
    "audit: after": "somebody verifies: what is not sealed yet",
    "audit: elsewhere": "somebody verifies, and rows are missing: where they are instead, once",
    "beginnings: begin": "timers that are due; those it passes by are taken by `take_due` in the same tick",
    "control: open_definitions": "a worker starts: what all open runs run, once",
    "control: open_runs_of": "a worker starts with code that does not fit: runs that it would fail, past others",
    "control: outlived": "what is said of a part, for as many workflows as somebody has said something for",
    "control: expired_runs": "runs whose time is over, past those that a younger run repeats",
    "journal: suspect": "leases that ran out, past those that `take_expired` takes in the same tick",
    "journal: take_due": "timers that are due; those it passes by are taken by `begin` in the same tick",
    "journal: take_expired": "leases that ran out, past those that `suspect` gave a respite a moment ago",
    "limits: counts": "the places of a gate: as many as its limit",
    "limits: enter": "the steps that wait for the turn of one run: its first ones",
    "limits: forget": "the places of a gate: as many as its limit",
    "limits: look": "the places of a gate: as many as its limit",
}
WHOLE_TABLE = {
    "audit: retired": "as many as months that were retired",
    "audit: sealed_of": "somebody retires a month: its seals, a thousandth of its rows",
    "control: pauses": "pauses are made by people, one by one",
    "control: retains_anything": "the first row",
    "control: retentions": "as many as workflows that somebody has said something for",
    "journal: durations": "as many as actions; a worker reads them now and then",
    "schedules: due": "the schedules that have ticks in a queue, by an index of those alone",
    "schedules: read": "somebody lists the schedules, of which there are as many as people have made",
}
# Pages of the audit log by one thing, and by that and another one, which is looked at on the way.
ASKED: dict[str, dict[str, Any]] = {
    "everything": {},
    "a run": {"run_id": str(UUID(int=1))},
    "an action": {"action": "run.deleted"},
    "an actor": {"actor": "ann"},
    "a tenant": {"tenant": "acme"},
    "a schedule": {"target": "schedule:nightly"},
    "what was refused": {"outcome": "refused"},
}
BOTH: dict[str, dict[str, Any]] = {
    "a run as a target": {"target": f"run:{UUID(int=1)}"},
    "an actor and an action": {"actor": "ann", "action": "run.deleted"},
    "a tenant and what was done": {"tenant": "acme", "outcome": "done"},
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
AUDITS = {
    f"audit of {name}: {later}": str(
        page(Filter(**given, since=NOW if later else None), 20, (NOW, 7) if later else None).compile(
            dialect=PGDialect_psycopg(), compile_kwargs={"render_postcompile": True}
        )
    ).encode()
    for name, given in {**ASKED, **BOTH}.items()
    for later in (False, True)
}
ALLOWED = {
    **{name: "entries" for name in AUDITS if any(name.startswith(f"audit of {both}:") for both in BOTH)},
    **dict.fromkeys(WHOLE_RUN, "run"),
    **dict.fromkeys(ENTRIES, "entries"),
    **dict.fromkeys(WHOLE_TABLE, "table"),
}
# They run behind `plan_whole`: they join all steps of a run with each other, once.
JOINED = {"control: reopen_steps", "control: copy_again", "control: copy_reused"}


RUNS = 3000

Plans = dict[str, dict[str, Any]]  # by the statement's name
PROBES = {
    "SELECT count(*) FROM step WHERE name = 'x'": "table",
    "SELECT FROM step WHERE run_id = %(run)s::uuid AND name = 'x'": "run",
    "SELECT FROM unnest(%(names)s::text[]) AS n(name) CROSS JOIN LATERAL "
    "(SELECT FROM step WHERE run_id = %(run)s::uuid AND step.name = n.name OFFSET 0) s": "again",
    "SELECT id FROM run WHERE workflow = %(workflow)s ORDER BY id DESC": "table",
    "SELECT id FROM run WHERE workflow = %(workflow)s AND state = 'failed' AND tenant = 'x' LIMIT 1": "entries",
    "SELECT id FROM run WHERE workflow = %(workflow)s ORDER BY tenant LIMIT 1": "entries",
    "SELECT id FROM run WHERE deadline_at <= clock_timestamp() "
    "AND state IN ('pending', 'running', 'paused') ORDER BY deadline_at LIMIT 1": "table",
}


# Whatever a list of runs is asked: each combination of conditions, the first page and a later one.
SEARCHES = {
    f"runs: {workflow}, {state}, {tags}, {since}, {before}": str(
        found(
            RUN,
            Search(workflow, state, tags, None if since is None else UUID(int=1)),
            None if before is None else UUID(int=2),
            20,
        ).compile(dialect=PGDialect_psycopg(), compile_kwargs={"render_postcompile": True})
    ).encode()
    for workflow, state, tags, since, before in product(
        (None, "past3"), (None, RunState.FAILED), ((), ("a",), ("a", "b")), (None, "since"), (None, "before")
    )
}


@pytest.fixture(scope="module")
def journal(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Many small runs in all states, something in each table, and no statistics."""
    with redis.Redis.from_url(servers.redis.url(98)) as client:
        client.flushdb()
    for stack in stack_of(servers, template, "plans", 98, tmp_path_factory.mktemp("plans")):
        with stack.connect() as connection:
            for (table,) in connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            ).fetchall():
                connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
            connection.execute(FILL.read_text().replace("{runs}", str(RUNS)).encode())
        yield stack


@pytest.fixture(scope="module")
def plans(journal: Stack) -> dict[str, Plans]:
    """All plans: without statistics; with them; and when there is a large run among the small ones."""
    every = {"fresh": _plans(journal)}
    journal.rows("ANALYZE")
    every["analysed"] = _plans(journal)
    wf = Workflow("large", register=False)
    wf.map("each", steps.noop, over=list(range(RUNS)))
    run = journal.client.start(wf).id
    journal.engine.run_bundle("trellis.map", run, [0])
    journal.rows("ANALYZE")
    every["a large run"] = _plans(journal)
    return every


def _plans(journal: Stack) -> Plans:
    with psycopg.connect(journal.database_url, autocommit=True, options=PLANNER) as connection:
        every: Plans = {}
        for name, text in {
            **STATEMENTS,
            **SEARCHES,
            **AUDITS,
            **{probe: probe.encode() for probe in PROBES},
        }.items():
            with connection.transaction(force_rollback=True):
                if name in JOINED:
                    connection.execute(STATEMENTS["control: plan_whole"])
                every[name] = plan(connection, text)
        return every


@pytest.fixture(scope="module")
def known(journal: Stack) -> dict[str, str]:
    with journal.connect() as connection:
        return predicates(connection)


@pytest.mark.parametrize("name", [*STATEMENTS, *SEARCHES, *AUDITS])
def test_a_statement_reads_what_it_names(plans: dict[str, Plans], known: dict[str, str], name: str) -> None:
    """With and without statistics, and no more than is said above."""
    for statistics, every in plans.items():
        bad = [str(each) for each in readings(every[name], known) if each.far != ALLOWED.get(name)]
        assert not bad, f"{statistics}: {bad}"


@pytest.mark.parametrize("name", ALLOWED)
def test_an_exception_is_needed(plans: dict[str, Plans], known: dict[str, str], name: str) -> None:
    """A statement that was mended leaves the list."""
    assert any(each.far == ALLOWED[name] for found in plans.values() for each in readings(found[name], known))


@pytest.mark.parametrize("probe", PROBES)
def test_a_plan_that_reads_more_is_found(plans: dict[str, Plans], known: dict[str, str], probe: str) -> None:
    """The judge itself: a count, a walk past others, a sort before a limit, a time that no index knows."""
    seen = list(readings(plans["analysed"][probe], known))
    assert PROBES[probe] in {each.far for each in seen}, seen


def test_the_most_urgent_steps_are_the_first_of_their_index(plans: dict[str, Plans]) -> None:
    """A claim of ranked steps reads as many entries as it takes, and sorts nothing but those."""
    for every in plans.values():
        nodes = _nodes(every["journal: claim_ranked"])
        lock = next(node for node in nodes if node["Node Type"] == "LockRows")
        [scan] = [node for node in _nodes(lock) if node.get("Relation Name") == "step"]
        assert scan["Index Name"] == "step_ranked"
        assert re.search(r"run_id = .*queue = ", scan["Index Cond"])
        assert "Sort" not in {node["Node Type"] for node in _nodes(lock)}


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)
