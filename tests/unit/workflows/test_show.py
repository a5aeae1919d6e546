"""Runs as tables, lines and JSON."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from trellis.workflows import show, words
from trellis.workflows.nodes import Node, Nodes
from trellis.workflows.records import Progress, Run, Step
from trellis.workflows.states import RunState, StepState
from trellis.workflows.summaries import Ending, Incident, abbreviated

NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)
ID = "01a1f837-a172-7aab-a423-780f50f9aad4"


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "id": ID,
        "workflow": "flights",
        "state": RunState.RUNNING,
        "key": None,
        "params": {"n": 3},
        "correlation_id": ID,
        "definition": "0" * 64,
        "steps": 3,
        "error": None,
        "created_at": NOON,
        "started_at": NOON,
        "finished_at": None,
    }
    return Run(**{**fields, **changes})


def node(name: str, states: dict[StepState, int], **changes: Any) -> Node:
    fields: dict[str, Any] = {
        "idx": 0,
        "name": name,
        "action": "do",
        "is_map": False,
        "states": states,
        "attempts": sum(states.values()),
        "retries": 0,
        "started_at": NOON,
        "finished_at": at(2),
    }
    return Node(**{**fields, **changes})


def incident(step: str | None = "load", kind: str = "step.retry", **detail: Any) -> Incident:
    content = {"type": "ConnectionError", "message": "no route", "delay": 0.5} | detail
    return Incident(1, NOON, kind, step, 2, content)


def printed(what: RenderableType, width: int = 100) -> list[str]:
    """Its lines as they stand on a terminal without colours."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(what)
    file = console.file
    assert isinstance(file, io.StringIO)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def table(*nodes: Node, total: int = 0, retries: int = 0) -> list[str]:
    counts: dict[StepState, int] = {}
    for each in nodes:
        for state, count in each.states.items():
            counts[state] = counts.get(state, 0) + count
    shown = Nodes(list(nodes), total or len(nodes), retries, at(10))
    return printed(show.table(shown, Progress(sum(counts.values()), 0, counts)))


# --- words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_a_time_span_has_three_digits_or_so(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_counts_have_their_plural() -> None:
    assert words.plural(1, "step") == "1 step"
    assert words.plural(2000, "retry", "retries") == "2,000 retries"


def test_states_are_counted_in_one_order() -> None:
    counts = {StepState.WAITING: 1, StepState.SUCCEEDED: 1200, StepState.FAILED: 0}
    assert words.counted(counts).plain == "1,200 succeeded, 1 waiting"


def test_a_failed_attempt_says_first_what_matters_most() -> None:
    """The end of a long message may be cut off, when the next attempt comes may not."""
    line = words.incident_line(incident(message="a\nb" * 500)).plain
    assert " load attempt 2 failed, next in 500 ms: ConnectionError: a ba b" in line
    assert line.endswith("…")
    assert words.incident_line(incident(kind="step.failed")).plain.endswith(
        " load attempt 2 failed: ConnectionError: no route"
    )
    assert words.incident_line(incident(None, "run.cancelled", type="")).plain.endswith(" the run cancelled")


# --- a run


def test_a_step_is_one_line_with_time_and_attempts() -> None:
    lines = table(
        node("load", {StepState.SUCCEEDED: 1}, attempts=3, retries=2),
        node("check", {StepState.WAITING: 1}, attempts=0, started_at=None, finished_at=None),
        retries=2,
    )
    assert lines == [
        "   step   state       time  attempts",
        "✓  load   succeeded  2.0 s  3 (2 retries)",
        "·  check  waiting",
        "2 steps: 1 succeeded, 1 waiting; 2 retries",
    ]


def test_a_map_is_one_line_with_its_items_by_state() -> None:
    half = {StepState.SUCCEEDED: 30, StepState.READY: 2, StepState.WAITING: 4}
    lines = table(
        node("delays", {StepState.SUCCEEDED: 36}, is_map=True),
        node("half", half, is_map=True, finished_at=at(3)),
        node("unknown", {StepState.WAITING: 1}, is_map=True, attempts=0),
    )
    assert lines[1].startswith("✓  delays[0…35]  36 succeeded")
    assert lines[2].startswith("▶  half[0…35]    30 succeeded, 2 ready, 4 waiting")
    assert lines[3] == "·  unknown[]     waiting"


def test_what_failed_shows_even_where_the_rest_succeeded() -> None:
    mixed = {StepState.SUCCEEDED: 35, StepState.FAILED: 1}
    assert table(node("delays", mixed, is_map=True))[1].startswith("✗  delays[0…35]  35 succeeded, 1 failed")


def test_a_step_that_runs_has_run_until_now() -> None:
    lines = table(node("load", {StepState.RUNNING: 1}, finished_at=None))
    assert lines[1] == "▶  load  running  10.0 s  1"


def test_a_skipped_step_took_no_time_and_no_attempt() -> None:
    assert table(node("load", {StepState.SKIPPED: 1}))[1] == "-  load  skipped"


def test_what_does_not_fit_is_counted() -> None:
    assert table(node("a", {StepState.SUCCEEDED: 1}), total=100_000)[2] == "… and 99,999 more steps"


def test_the_headline_says_how_long() -> None:
    assert show.headline(run(), 3.2).plain == f"flights  {ID}  running for 3.2 s"
    over = run(state=RunState.SUCCEEDED, finished_at=at(75), key="nightly")
    assert show.headline(over, 99).plain == f"flights  {ID}  succeeded after 1 min 15 s  key nightly"
    early = run(state=RunState.CANCELLED, started_at=None, finished_at=at(1))
    assert show.headline(early).plain == f"flights  {ID}  cancelled"


def test_a_failure_shows_the_end_of_its_traceback_once() -> None:
    frames = "".join(f'  File "x.py", line {number}\n' for number in range(20))
    error = {"step": "load", "type": "ValueError", "message": "no", "traceback": f"{frames}ValueError: no\n"}
    found = show.failure(run(state=RunState.FAILED, error=error))
    assert found is not None
    lines = printed(found)
    assert lines[0] == "load: ValueError: no"
    assert lines[-1].strip() == 'File "x.py", line 19'
    assert len(lines) == 13
    assert show.failure(run()) is None


def test_failures_leave_out_the_one_that_ended_the_run() -> None:
    """That one is told with its traceback."""
    failed = run(state=RunState.FAILED, error={"step": "load", "type": "E", "message": ""})
    counts = Progress(2, 2, {StepState.FAILED: 2})
    both = [incident("early", "step.failed"), incident("load", "step.failed")]
    found = show.failures(failed, both, counts)
    assert found is not None
    assert ["early" in line for line in printed(found)] == [True]
    assert show.failures(failed, both[1:], Progress(1, 1, {StepState.FAILED: 1})) is None


def test_many_failures_are_counted() -> None:
    found = show.failures(run(), [incident()], Progress(400, 400, {StepState.FAILED: 400}))
    assert found is not None
    assert printed(found)[0] == "The latest of 400 failed steps:"


def test_results_are_cut_and_say_so() -> None:
    found = show.results([Ending("a", "[1,2", 5000), Ending("b", '"x"', 3)], 7)
    assert found is not None
    assert printed(found) == ["a → [1,2… (5,000 characters)", 'b → "x"', "… and 5 more results"]
    assert show.results([], 0) is None


# --- many runs


def test_a_listing_fits_a_narrow_terminal_by_short_ids() -> None:
    """Ids begin with their millisecond, so that is enough to tell them apart."""
    runs = [run(), run(id="01a1f838-0000-7000-8000-000000000000", state=RunState.PENDING, started_at=None)]
    narrow = printed(show.listing(runs, 80), 80)
    assert [line.split()[0] for line in narrow] == ["run", "01a1f837-a172", "01a1f838-0000"]
    assert ID in printed(show.listing(runs, 120), 120)[1]


def test_a_listing_has_the_columns_that_somebody_needs() -> None:
    assert printed(show.listing([run()], 120), 120)[0].split() == ["run", "workflow", "state", "created"]
    failed = run(state=RunState.FAILED, key="k", error={"type": "E", "message": "no"}, finished_at=at(2))
    header, line = printed(show.listing([failed], 140), 140)
    assert header.split() == ["run", "workflow", "state", "created", "took", "key", "error"]
    assert line.endswith("2.0 s  k    E: no")


def test_ids_are_abbreviated_as_far_as_they_differ() -> None:
    twins = [f"01a1f837-a172-7aab-{end}-780f50f9aad4" for end in ("a423", "a427")]
    assert abbreviated(twins) == ["01a1f837-a172-7aab-a423", "01a1f837-a172-7aab-a427"]
    assert abbreviated([ID]) == ["01a1f837-a172"]
    assert abbreviated([ID, ID]) == ["01a1f837-a172"] * 2


# --- JSON


def test_json_has_the_records_and_plain_values() -> None:
    step = Step(0, "load", "do", "celery", 5, StepState.SUCCEEDED, 1, 0, NOON, at(2), "w", None, None)
    over = run(state=RunState.SUCCEEDED, finished_at=at(2))
    progress = Progress(1, 1, {StepState.SUCCEEDED: 1})
    document = json.loads(show.dumps(show.run_document(over, progress, [step], {"load": 3})))
    assert document["state"] == "succeeded"
    assert document["seconds"] == 2.0
    assert document["created_at"] == "2013-01-01T12:00:00Z"
    assert document["progress"] == {"total": 1, "done": 1, "by_state": {"succeeded": 1}}
    assert document["steps"][0]["seconds"] == 2.0
    assert document["result"] == {"load": 3}


def test_json_of_a_run_that_is_not_over_has_no_result() -> None:
    document = show.run_document(run(), Progress(0, 0, {}), None, None)
    assert document["result"] is None
    assert document["seconds"] is None
    assert "steps" not in document
