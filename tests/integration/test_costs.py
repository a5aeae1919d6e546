"""What a run costs that uses nothing but steps: the statements that are asked for it, all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import psycopg
import pytest
import steps
from stack import Stack

from trellis.tasks.queries import load, numbered
from trellis.workflows import Workflow
from trellis.workflows.states import RunState

FILES = [
    each.name for each in resources.files("trellis.workflows.sql").iterdir() if each.name.endswith(".sql")
]
NAMES = {
    numbered(text).text: name for file in FILES for name, text in load("trellis.workflows.sql", file).items()
}


@contextmanager
def asked() -> Iterator[list[str]]:
    """The names of the statements that this process sends meanwhile, of its own by their beginning."""
    found: list[str] = []

    def recorded(send: Any) -> Any:
        def execute(cursor: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            text = query if isinstance(query, bytes) else str(query).encode()
            found.append(NAMES.get(text) or text[:40].decode())
            return send(cursor, query, *args, **kwargs)

        return execute

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(psycopg.Cursor, "execute", recorded(psycopg.Cursor.execute))
        yield found


def test_a_feature_that_a_workflow_does_not_use_costs_it_no_statement(stack: Stack) -> None:
    """Short steps in a row: one transaction to start, one claim, one completion a step, one notice of the end."""
    wf = Workflow("row", register=False)
    for turn in range(3):
        wf.step(f"s{turn}", steps.noop, after=[f"s{turn - 1}"] if turn else [])
    for _ in range(3):  # until the definition is known, and the action is known to be short
        stack.drain(stack.client.start(wf).id)
    stack.engine.durations.share()
    with asked() as started:
        run = stack.client.start(wf).id
    with asked() as worked:
        stack.engine.run_bundle("noop", run, [0])
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert [*started[:2], *(each[:6] for each in started[2:])] == [
        "define",
        "open_run",
        "SELECT",
    ]  # and a COPY of the steps
    assert worked == ["claim", *["complete_clean"] * 3, "notify"]
