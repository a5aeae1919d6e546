"""The in-process journal keeps step with the SQL of the real one."""

from __future__ import annotations

import inspect

import pytest

from trellis.tasks.queries import load
from trellis.workflows.testing import statements
from trellis.workflows.testing.counterparts import parameters

FILES = {
    file: load("trellis.workflows.sql", file)
    for file in (
        "journal.sql",
        "control.sql",
        "schedules.sql",
        "beginnings.sql",
        "limits.sql",
        "effects.sql",
        "why.sql",
    )
}
# What a deployment is checked by needs workers that know different code; a body's own SQL is refused at `plan_freely`.
REFUSED = {
    "control.sql": {"open_definitions", "read_definitions", "open_runs_of", "put_back", "open_steps"},
    "effects.sql": {"plan_strictly"},
}
KNOWN = {
    f"{file}: {name}": (text, statements.STATEMENTS[text])
    for file, blocks in FILES.items()
    for name, text in blocks.items()
    if text in statements.STATEMENTS
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_counterpart_takes_what_its_statement_takes(name: str) -> None:
    """A statement whose parameters change has to change in workflows/testing as well."""
    text, function = KNOWN[name]
    taken = list(inspect.signature(function).parameters.values())[1:]
    open_end = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken)
    named = {each.name for each in taken if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert named == set(parameters(text)) or (open_end and named < set(parameters(text)))


@pytest.mark.parametrize("file", FILES)
def test_what_has_no_counterpart_is_refused_on_purpose(file: str) -> None:
    """A new statement gets a counterpart, or is named above."""
    known = {*statements.STATEMENTS, *statements.COPY}
    missing = {name for name, text in FILES[file].items() if text not in known}
    assert missing == REFUSED.get(file, set())
