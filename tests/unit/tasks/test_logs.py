"""Logs: one format, no secrets."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from redactions import CASES

from trellis.tasks.logs import bound, configure, get_logger
from trellis.tasks.redaction import redact
from trellis.tasks.settings import Settings


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize(("value", "expected"), CASES)
def test_secrets_are_taken_out_at_any_depth(value: object, expected: object) -> None:
    """By the name of the field, and out of addresses."""
    assert redact(value) == expected


def test_lines_are_json_with_what_is_bound_whoever_writes_them() -> None:
    """structlog and the standard library alike; exceptions included."""
    out = io.StringIO()
    configure(Settings(log_format="json"), stream=out)
    with bound(run="r1", step="s", attempt=2):
        get_logger("mine").info("said", n=1)
        try:
            raise ValueError("postgresql://u:pw@h/db")
        except ValueError:
            logging.getLogger("theirs").exception("went wrong")
    ours, theirs = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (ours["event"], ours["n"], ours["run"], ours["attempt"]) == ("said", 1, "r1", 2)
    assert (theirs["event"], theirs["step"], theirs["level"]) == ("went wrong", "s", "error")
    assert "u:***@h" in theirs["exception"]


def test_the_console_format_and_the_level() -> None:
    """For people; below the level there is silence."""
    out = io.StringIO()
    configure(Settings(log_format="console", log_level="warning"), stream=out)
    get_logger("mine").info("quiet")
    get_logger("mine").warning("loud", where="here")
    assert "quiet" not in out.getvalue()
    assert "loud" in out.getvalue()
    assert "where=here" in out.getvalue()


@pytest.mark.parametrize("kind", ["console", "json"])
def test_a_traceback_shows_no_secret_and_no_locals(kind: Literal["console", "json"]) -> None:
    """Of ours and of the standard library: an address with its password is a local of whoever connects."""
    out = io.StringIO()
    configure(Settings(log_format=kind), stream=out)
    url = "postgresql://u:" + "hunter2" + "@h/db"
    for say in (get_logger("mine").exception, logging.getLogger("theirs").exception):
        try:
            raise ValueError(f"cannot reach {url}")
        except ValueError:
            say("went.wrong")
    shown = out.getvalue()
    assert shown.count("ValueError: cannot reach postgresql://u:***@h/db") == 2
    assert "hunter2" not in shown


def test_ticks_are_silent_unless_something_is_wrong() -> None:
    """Celery's two lines a second about them are left out; warnings are not."""
    out = io.StringIO()
    configure(Settings(log_format="json"), stream=out)
    logging.getLogger("celery.worker.strategy").info("Task trellis.tick[1] received")
    logging.getLogger("celery.app.trace").warning("Task trellis.tick[1] raised")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == [
        "Task trellis.tick[1] raised"
    ]


def test_a_long_text_is_searched_in_one_pass() -> None:
    """A megabyte of letters, with an address at its end; a pattern that backtracks would take hours."""
    assert redact("a" * 1_000_000 + "postgresql://u:pw@h/db").endswith("postgresql://u:***@h/db")
    assert len(redact("://" * 100_000)) == 300_000
    assert redact(" password" * 100_000 + "=x").endswith(" password=***")
