"""What the engine has to say in the audit log: in the transaction of what it records, by whoever does it."""

from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest
import steps
from pydantic import SecretStr
from redactions import CASES
from stack import Stack

from trellis.memory.actions import AuditAction
from trellis.memory.audit import AuditLog, Entry, record
from trellis.memory.history import Filter, History
from trellis.tasks.app import sender
from trellis.tasks.database import Database
from trellis.tasks.errors import NotPermitted
from trellis.tasks.redaction import redact
from trellis.workflows import Client, Workflow, auditing
from trellis.workflows.engine import Engine
from trellis.workflows.recovery import tick


def said(stack: Stack) -> list[tuple[str, str]]:
    return stack.rows("SELECT action, target FROM audit_log ORDER BY id")


def test_what_is_done_to_runs_is_written_by_whoever_does_it(stack: Stack) -> None:
    """In the transaction of what it records, with the actor of the connection."""
    client = Client(stack.settings.model_copy(update={"actor": "ann the \\ operator"}))
    wf = Workflow("audited", register=False)
    wf.step("only", steps.noop)
    run = client.start(wf, tenant="acme").id
    client.pause(run=run)
    client.resume(run=run)
    client.cancel(run)
    again = client.rerun(run, from_step="only").id
    client.cancel(again)
    client.delete(again)
    client.retry(run)
    client.cancel(run)
    client.delete(run)
    client.close()
    done = ["started", "paused", "resumed", "cancelled", "retried", "cancelled", "deleted"]
    assert [action for action, target in said(stack) if target == f"run:{run}"] == [
        f"run.{each}" for each in done
    ]
    assert [action for action, target in said(stack) if target == f"run:{again}"] == [
        "run.rerun",
        "run.cancelled",
        "run.deleted",
    ]
    assert stack.rows("SELECT DISTINCT actor, tenant FROM audit_log WHERE run_id = %s", run) == [
        ("ann the \\ operator", "acme")
    ]
    assert ("definition.registered", "workflow:audited") in said(stack)


@pytest.mark.parametrize("actor", ["two words", "tab\tand\nline", "back\\slash", "żółw", "-c x=y"])
def test_the_actor_is_taken_as_it_is_written(stack: Stack, actor: str) -> None:
    database = Database(stack.database_url, stack.settings.model_copy(update={"actor": actor}))
    with database.connection() as connection:
        record(connection, Entry(AuditAction.RUN_STARTED))
    database.close()
    assert stack.rows("SELECT actor FROM audit_log") == [(actor,)]


def test_who_may_start_runs_needs_no_right_on_the_log_and_cannot_stand_in_for_it(stack: Stack) -> None:
    """Neither write it, nor call what writes it, nor make a table of its name that is found first."""
    wf = Workflow("lowly", register=False)
    wf.step("only", steps.noop)
    stack.rows("CREATE ROLE lowly")
    stack.rows("GRANT SELECT, INSERT, UPDATE ON run, step, definition, run_tag, pause TO lowly")
    with stack.connect() as connection:
        connection.execute("SET ROLE lowly")
        for statement in ("DELETE FROM audit_log", "SELECT audit_write('run.started', NULL, NULL)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        connection.execute("CREATE TEMPORARY TABLE audit_log (id int)")
        with connection.transaction():
            run = stack.client.start(wf, connection=connection).id
    assert ("run.started", f"run:{run}") in said(stack)
    stack.rows("DROP OWNED BY lowly")
    stack.rows("DROP ROLE lowly")


def test_who_decides_on_an_approval_is_written(stack: Stack) -> None:
    wf = Workflow("asks", register=False)
    wf.approve("may", "May it?", who=["ann", "bob"])
    for vote in (stack.client.approve, stack.client.reject):
        run = stack.client.start(wf).id
        stack.engine.run_bundle("trellis.approve", run, [0])
        vote(run, "may", by="ann", comment="as agreed")
    rows = stack.rows("SELECT action, actor, target LIKE 'step:%%/may', detail->>'comment', detail->>'via' "
                      "FROM audit_log WHERE action LIKE 'approval.%%' ORDER BY id")  # fmt: skip
    via = stack.settings.actor
    assert rows == [(f"approval.{each}", "ann", True, "as agreed", via) for each in ("given", "refused")]


def test_who_may_not_decide_is_written_though_nothing_has_happened(stack: Stack) -> None:
    wf = Workflow("asks", register=False)
    wf.approve("may", "May it?", who=["ann"])
    run = stack.client.start(wf, tenant="acme").id
    stack.engine.run_bundle("trellis.approve", run, [0])
    with pytest.raises(NotPermitted):
        stack.client.reject(run, "may", by="mallory")
    [row] = History(stack.client.database).rows(Filter(outcome="refused"))
    assert (row.action, row.actor, row.target) == ("access.refused", "mallory", f"step:{run}/may")
    assert (row.tenant, row.run_id) == ("acme", run)
    assert row.detail == {"tried": "rejected", "may": ["ann"], "via": stack.settings.actor}
    assert stack.client.approve(run, "may", by="ann")


def test_what_people_say_about_steps_is_written_without_what_it_holds(stack: Stack) -> None:
    """A signal, a doubt and a dead letter: by whom, how and where; no payload and no result."""
    wf = Workflow("told", register=False)
    wf.wait_for("hears", "go")
    run = stack.client.start(wf).id
    stack.client.signal(run, "go", {"password": "hunter2"}, id="k1")
    event = "INSERT INTO event (run_id, kind, idx, attempt, detail) VALUES (%s, %s, 0, 1, %s::jsonb)"
    stack.rows(event, run, "step.resolved", '{"done": {"password": "hunter2"}, "by": "ann"}')
    stack.rows(event, run, "dead.discarded", '{"step": "hears"}')
    stack.rows(event, run, "step.failed", "{}")
    rows = stack.rows("SELECT action, actor = 'ann', target, detail - 'via' FROM audit_log WHERE run_id = %s "
                      "AND action NOT LIKE 'run.%%' ORDER BY id", run)  # fmt: skip
    assert rows == [
        ("signal.sent", False, f"run:{run}", {"signal": "go", "id": "k1"}),
        ("doubt.resolved", True, f"step:{run}/hears", {"answer": "done"}),
        ("dead_letter.discarded", False, f"step:{run}/hears", None),
    ]


def test_what_people_say_to_a_run_is_found_by_its_tenant_and_correlation_id(stack: Stack) -> None:
    """A vote, a signal, a doubt and a dead letter, as all else of the run; of another tenant there is nothing."""
    wf = Workflow("heard", register=False)
    wf.approve("may", "May it?")
    wf.wait_for("hears", "go")
    for tenant, correlation in (("acme", "order-7"), ("umbrella", "order-8")):
        for vote in (stack.client.approve, stack.client.reject):
            run = stack.client.start(wf, tenant=tenant, correlation_id=correlation).id
            stack.engine.run_bundle("trellis.approve", run, [0])
            vote(run, "may", by="ann")
        stack.client.signal(run, "go", {})
        event = "INSERT INTO event (run_id, kind, idx, attempt, detail) VALUES (%s, %s, 1, 1, '{}')"
        for kind in ("step.resolved", "dead.discarded"):
            stack.rows(event, run, kind)
    said_to = ["approval.given", "approval.refused", "signal.sent", "doubt.resolved", "dead_letter.discarded"]
    for tenant, correlation in (("acme", "order-7"), ("umbrella", "order-8")):
        rows = History(stack.client.database).rows(Filter(tenant=tenant))
        assert [row.action for row in reversed(rows) if not row.action.startswith("run.")] == said_to
        assert {(row.tenant, row.correlation_id) for row in rows} == {(tenant, correlation)}


def test_secrets_are_taken_out_of_what_triggers_write(stack: Stack) -> None:
    """Wherever a person may write one: the comment and the name of a vote, a signal's name and id, whose connection."""
    url = "postgres://u:hunter2@h/db"
    client = Client(stack.settings.model_copy(update={"actor": f"ann of {url}"}))
    wf = Workflow("careless", register=False)
    wf.approve("may", "May it?")
    wf.wait_for("hears", f"go {url}")
    run = client.start(wf).id
    stack.engine.run_bundle("trellis.approve", run, [0])
    client.approve(run, "may", by=f"bob of {url}", comment=f"I tried it at {url}, password=hunter2")
    client.signal(run, f"go {url}", {}, id=f"k {url}")
    client.pause(queue=f"of {url}")
    client.close()
    shown = "postgres://u:***@h/db"
    rows = {row.action: row for row in History(stack.client.database).rows()}
    assert rows["approval.given"].actor == f"bob of {shown}"
    assert rows["approval.given"].detail is not None
    assert rows["approval.given"].detail["comment"] == f"I tried it at {shown}, password=***"
    assert rows["approval.given"].detail["via"] == f"ann of {shown}"
    assert rows["signal.sent"].detail == {"signal": f"go {shown}", "id": f"k {shown}"}
    assert rows["queue.paused"].target == f"queue:of {shown}"
    assert {row.actor for row in rows.values()} == {f"ann of {shown}", f"bob of {shown}"}
    assert stack.rows("SELECT FROM audit_log l WHERE l::text LIKE '%%hunter2%%'") == []


def test_the_rule_of_the_database_for_secrets_is_that_of_all_others(stack: Stack) -> None:
    """The same cases, as a detail and, where one is a text, as a target; and a row is written by that rule."""
    for value, expected in (*CASES, ("a" * 100_000 + "://u:pw@h", "a" * 100_000 + "://u:***@h")):
        assert redact(value) == expected
        given = json.dumps(value)
        assert stack.rows("SELECT audit_redacted(%s::jsonb)", given) == [(expected,)], value
        if isinstance(value, str):
            assert stack.rows("SELECT audit_redacted_text(%s)", value) == [(expected,)], value
        written = "SELECT audit_write('run.started', NULL, jsonb_build_object('x', %s::jsonb))"
        stack.rows(written, given)
        assert stack.rows("SELECT detail->'x' FROM audit_log ORDER BY id DESC LIMIT 1") == [(expected,)]


def test_settings_are_written_when_a_process_of_a_role_begins_with_others(stack: Stack) -> None:
    """Names and values, but of secrets only the names of keys."""
    database = stack.client.database
    keyed = stack.settings.model_copy(update={"audit_keys": SecretStr("2026:0123456789abcdef")})
    assert auditing.begins(database, stack.settings, "worker:one")
    assert not auditing.begins(database, stack.settings, "worker:one")
    assert auditing.begins(database, stack.settings, "worker:two")
    assert auditing.begins(database, keyed.model_copy(update={"bundle_max": 7}), "worker:one")
    row = History(database).rows(Filter(target="settings:worker:one"), limit=1)[0]
    assert row.detail is not None
    assert row.detail["changed"] == {
        "bundle_max": {"was": None, "is": 7},
        "sealing_with": {"was": None, "is": ["2026"]},
    }
    assert "0123456789abcdef" not in str(row)


def test_a_worker_that_begins_says_with_which_settings(stack: Stack) -> None:
    stack.worker("first")
    assert ("setting.changed", "settings:worker:first") in said(stack)


def test_schedules_pauses_and_settings_are_written_when_they_change_and_not_when_they_fire(
    stack: Stack,
) -> None:
    wf = Workflow("nightly", register=False)
    wf.step("only", steps.noop)
    stack.client.schedules.create("at-night", wf, every=3600)
    stack.client.schedules.trigger("at-night")
    tick(stack.engine)
    stack.client.schedules.pause("at-night")
    stack.client.schedules.delete("at-night")
    stack.client.pause(queue="celery")
    stack.client.resume(queue="celery")
    for _ in range(2):
        stack.client.retain("nightly", timedelta(days=3), events=timedelta(days=1))
    stack.client.retain("nightly", events=None)
    mine = [row for row in said(stack) if not row[0].startswith(("run.", "definition."))]
    assert mine == [
        ("schedule.created", "schedule:at-night"),
        ("schedule.changed", "schedule:at-night"),
        ("schedule.deleted", "schedule:at-night"),
        ("queue.paused", "queue:celery"),
        ("queue.resumed", "queue:celery"),
        *[("setting.changed", "retention:nightly")] * 3,
    ]


def test_a_start_that_is_refused_or_rolled_back_is_not_written(stack: Stack) -> None:
    wf = Workflow("twice", register=False)
    wf.step("only", steps.noop)
    for _ in range(3):
        stack.client.start(wf, key="one")
    assert [action for action, _ in said(stack)].count("run.started") == 1


def test_the_tick_seals(stack: Stack) -> None:
    settings = stack.settings.model_copy(update={"audit_keys": SecretStr("2026:0123456789abcdef")})
    engine = Engine(settings, sender(stack.broker_url))
    wf = Workflow("sealed", register=False)
    wf.step("only", steps.noop)
    stack.client.start(wf)
    assert tick(engine)["sealed"] == 2
    found = AuditLog(engine.database, settings.sealing_keys()).verify()
    assert (found.rows, found.findings) == (2, ())
    engine.database.close()
