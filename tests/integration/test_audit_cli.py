"""The commands of the audit log: what they print, and how they leave."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from stack import Stack
from typer.testing import CliRunner

from trellis.memory import cli_audit
from trellis.memory.actions import AuditAction, Outcome
from trellis.memory.audit import Entry, record
from trellis.tasks.errors import ConfigurationError, ParameterError, StateError

Audit = Callable[..., Result]


@pytest.fixture
def audit(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """The command, in this process, on a log of three rows."""
    monkeypatch.setenv("TRELLIS_DATABASE_URL", stack.database_url)
    monkeypatch.setenv("TRELLIS_AUDIT_KEYS", "2026:0123456789abcdef")
    with stack.client.database.transaction() as connection:
        record(
            connection,
            Entry(AuditAction.RUN_STARTED, "run:1", actor="ann", detail={"workflow": "nightly"}),
            Entry(AuditAction.ACCESS_REFUSED, "step:1/may", Outcome.REFUSED, actor="=mallory()"),
            Entry(AuditAction.RUN_DELETED, "run:1", actor="ann"),
        )
    return lambda *arguments: CliRunner().invoke(cli_audit.app, list(arguments))


def test_rows_are_listed_newest_first_and_narrowed_down(audit: Audit) -> None:
    shown = audit("list")
    assert shown.exit_code == 0
    assert [line.split()[4] for line in shown.stdout.splitlines()[1:]] == [
        "run.deleted", "access.refused", "run.started",
    ]  # fmt: skip
    [line] = audit("list", "--outcome", "refused", "--json").stdout.splitlines()
    assert json.loads(line)["target"] == "step:1/may"
    nothing = audit("list", "--actor", "nobody")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert isinstance(audit("list", "--action", "run.stared").exception, ParameterError)
    for option, value in (("since", "soon"), ("run", "x"), ("outcome", "well"), ("until", "never")):
        refused = audit("list", f"--{option}", value).exception
        assert isinstance(refused, ParameterError)
        assert list(refused.problems) == [option]  # as it is called on the command line


def test_an_export_is_json_lines_or_a_table_without_formulas(audit: Audit, tmp_path: Path) -> None:
    lines = audit("export", "--actor", "ann").stdout.splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["run.deleted", "run.started"]
    file = tmp_path / "log.csv"
    assert audit("export", "--format", "csv", "--out", str(file)).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["actor"] for row in rows] == ["ann", "'=mallory()", "ann"]


def test_a_log_verifies_until_somebody_changes_it(audit: Audit, stack: Stack) -> None:
    assert audit("seal").stdout == "3 rows sealed\n"
    shown = audit("verify")
    assert (shown.exit_code, shown.stdout.splitlines()[-1].partition(":")[0]) == (0, "sound")
    head = next(line.removeprefix("head ") for line in shown.stdout.splitlines() if line.startswith("head "))
    assert audit("verify", "--head", head).exit_code == 0
    assert audit("verify", "--head", "9:abc").exit_code == 1
    with stack.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        [(last,)] = connection.execute("SELECT max(id) FROM audit_log").fetchall()
        connection.execute("UPDATE audit_log SET actor = 'bob' WHERE id = %s", [last])
    shown = audit("verify")
    assert shown.exit_code == 1
    assert f"row {last} (seal 1): was changed" in shown.stdout


def test_what_cannot_be_done_is_said(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(audit("retire", "January").exception, ParameterError)
    assert isinstance(audit("retire", "2020-01").exception, StateError)
    assert "nothing to do" in audit("rebase").stdout
    monkeypatch.delenv("TRELLIS_AUDIT_KEYS")
    assert isinstance(audit("seal").exception, ConfigurationError)
