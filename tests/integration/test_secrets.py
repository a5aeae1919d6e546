"""Secrets in a real journal: nothing of them is in any table in plain text, and keys are changed under them."""

from __future__ import annotations

import pytest
import steps
from pydantic import SecretStr
from stack import Stack
from typer.testing import CliRunner

from trellis.tasks.app import sender
from trellis.tasks.errors import ConfigurationError, SecretError
from trellis.workflows import Client, Workflow, action, cli_secrets
from trellis.workflows.engine import Engine
from trellis.workflows.rotation import Rotated, rotate

OLD, NEW = "old:0123456789abcdef", "new:fedcba9876543210"
SECRET = "hunter2-of-the-tests"
SEEN: list[str] = []


@action(name="secrets.use")
def use(token: SecretStr, n: int = 0) -> int:
    SEEN.append(token.get_secret_value())
    return n


def workflow() -> Workflow:
    wf = Workflow("secretive", params={"token": SecretStr}, register=False)
    first = wf.step("first", use, token=wf.params.token)
    wf.map("each", use, over=[1, 2], token=wf.params.token, n=wf.item, after=[first])
    wf.step("last", steps.noop, after=["each"])
    return wf


def everything(stack: Stack) -> str:
    """All rows of all tables, as text."""
    tables = stack.rows(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return "\n".join(str(stack.rows(f"SELECT t::text FROM {table} t")) for (table,) in tables)


def keyed(stack: Stack, keys: str) -> tuple[Client, Engine]:
    settings = stack.with_settings(secret_keys=keys)
    return Client(settings), Engine(settings, sender(stack.broker_url))


def drained(stack: Stack, engine: Engine, run: str) -> None:
    stack._engine = engine
    stack.drain(run)


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


def test_no_table_has_it_in_plain_text_and_the_body_gets_it(stack: Stack) -> None:
    client, engine = keyed(stack, OLD)
    run = client.start(workflow(), {"token": SECRET}).id
    drained(stack, engine, run)
    assert SEEN == [SECRET] * 3
    text = everything(stack)
    assert SECRET not in text
    assert "trellis-secret:old:" in text
    assert client.get(run).params == {"token": "**********"}
    client.close()


def test_a_key_is_changed_under_open_runs_and_the_old_one_is_not_needed_any_more(stack: Stack) -> None:
    client, engine = keyed(stack, OLD)
    runs = [client.start(workflow(), {"token": SECRET}).id for _ in range(3)]
    drained(stack, engine, runs[0])
    client.close()
    both = stack.with_settings(secret_keys=f"{NEW},{OLD}")
    assert rotate(stack.client.database, both) == Rotated(3, 8)
    assert "trellis-secret:old:" not in everything(stack)
    assert rotate(stack.client.database, both) == Rotated(0, 0)
    engine.database.close()
    client, engine = keyed(stack, NEW)
    drained(stack, engine, runs[1])
    assert SEEN == [SECRET] * 6
    said = stack.rows("SELECT detail FROM audit_log WHERE action = 'secrets.rotated'")
    assert said == [({"to": "new", "runs": 3, "steps": 8},)]
    client.close()


def test_the_command_says_what_it_did(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client, engine = keyed(stack, OLD)
    client.start(workflow(), {"token": SECRET})
    client.close()
    engine.database.close()
    monkeypatch.setenv("TRELLIS_DATABASE_URL", stack.database_url)
    monkeypatch.setenv("TRELLIS_SECRET_KEYS", f"{NEW},{OLD}")
    for said in ("1 runs and 2 steps", "0 runs and 0 steps"):
        done = CliRunner().invoke(cli_secrets.app, ["rotate"])
        assert (done.exit_code, done.stdout) == (0, f"{said} more are under key 'new' now\n")


def test_a_rotation_that_was_stopped_goes_on(stack: Stack) -> None:
    """What a missing key keeps from being opened stops it; with the key it does the rest."""
    for keys in (OLD, "lost:aaaabbbbccccdddd", OLD):
        client, engine = keyed(stack, keys)
        client.start(workflow(), {"token": SECRET})
        client.close()
        engine.database.close()
    with pytest.raises(SecretError, match="key 'lost'"):
        rotate(stack.client.database, stack.with_settings(secret_keys=f"{NEW},{OLD}"))
    done = rotate(
        stack.client.database, stack.with_settings(secret_keys=f"{NEW},{OLD},lost:aaaabbbbccccdddd")
    )
    assert done.runs == 2
    assert everything(stack).count("trellis-secret:new:") == everything(stack).count("trellis-secret:")


def test_without_a_key_nothing_is_rotated(stack: Stack) -> None:
    with pytest.raises(ConfigurationError, match="TRELLIS_SECRET_KEYS"):
        rotate(stack.client.database, stack.settings)


def test_a_workflow_without_secrets_needs_no_key_and_is_not_touched(stack: Stack) -> None:
    wf = Workflow("open", params={"n": int}, register=False)
    wf.step("only", steps.noop)
    run = stack.client.start(wf, {"n": 1}).id
    before = stack.rows("SELECT xmin FROM run WHERE id = %s", run)
    assert rotate(stack.client.database, stack.with_settings(secret_keys=NEW)) == Rotated(0, 0)
    assert stack.rows("SELECT xmin FROM run WHERE id = %s", run) == before
