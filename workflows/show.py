"""Runs as tables and as JSON.

The law: pure. Records go in; something that rich prints, or something that JSON holds, comes out. What is
too long for a screen is cut, and a line says how much.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .nodes import Node, Nodes
from .overview import STATES, SYMBOLS
from .records import Json, Progress, Run, Step
from .states import STEP_ENDS, StepState
from .summaries import Ending, Incident, abbreviated
from .words import STYLES, cause, counted, duration, incident_line, moment, one_line, plural

_UNTOUCHED = {StepState.WAITING, StepState.SKIPPED}  # no body ran, though a worker looked
_TRACE_LINES = 12
_WIDE = 120  # columns from which whole ids fit into a listing


# --- a run


def run_seconds(run: Run) -> float | None:
    """How long a run took; None where it is not over, or never began."""
    if run.started_at is None or run.finished_at is None:
        return None
    return max(0.0, (run.finished_at - run.started_at).total_seconds())


def headline(run: Run, seconds: float | None = None) -> Text:
    """Workflow, id and state, and how long it took or has taken."""
    line = Text.assemble(
        (run.workflow, "bold"), "  ", (run.id, "dim"), "  ", (run.state.value, STYLES[run.state.value])
    )
    took = run_seconds(run)
    if took is not None:
        line.append(f" after {duration(took)}")
    elif seconds is not None:
        line.append(f" for {duration(seconds)}")
    if run.key is not None:
        line.append(f"  key {run.key}", "dim")
    return line


def table(nodes: Nodes, progress: Progress) -> RenderableType:
    """The steps of a run; a map is one line."""
    found = _plain_table("", "step", "state", "time", "attempts")
    found.columns[3].justify = "right"
    for node in nodes.shown:
        state = _state(node)
        found.add_row(
            Text(SYMBOLS[state], STYLES[state]),
            _name(node),
            _state_text(node, state),
            _time(node, nodes.as_of),
            _attempts(node),
        )
    parts: list[RenderableType] = [found]
    if nodes.total > len(nodes.shown):
        parts.append(Text(f"… and {plural(nodes.total - len(nodes.shown), 'more step')}", "dim"))
    summary = Text.assemble(f"{plural(progress.total, 'step')}: ", counted(progress.by_state))
    if nodes.retries:
        summary.append(f"; {plural(nodes.retries, 'retry', 'retries')}")
    parts.append(summary)
    return Group(*parts)


def _plain_table(*columns: str) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        found.add_column(name, overflow="fold")
    return found


def _state(node: Node) -> str:
    """The most telling of a node's states; one that is half done runs."""
    present = [state for state in STATES if node.states.get(StepState(state))]
    state = present[0]
    started = any(node.states.get(end) for end in STEP_ENDS)
    return "running" if state in ("ready", "waiting") and started else state


def _name(node: Node) -> Text:
    total = sum(node.states.values())
    name = Text(node.name)
    if node.is_map:
        name.append(f"[0…{total - 1}]" if total > 1 else "[]", "dim")
    return name


def _state_text(node: Node, state: str) -> Text:
    return counted(node.states) if sum(node.states.values()) > 1 else Text(state, STYLES[state])


def _time(node: Node, as_of: datetime) -> str:
    if node.started_at is None or not node.states.keys() - _UNTOUCHED:
        return ""
    over = all(state in STEP_ENDS for state in node.states)
    until = node.finished_at if over else as_of
    if until is None or (not over and not node.states.get(StepState.RUNNING)):
        return ""
    return duration(max(0.0, (until - node.started_at).total_seconds()))


def _attempts(node: Node) -> Text:
    if not node.attempts or not node.states.keys() - _UNTOUCHED:
        return Text("")
    if not node.retries:
        return Text(f"{node.attempts:,}")
    return Text.assemble(f"{node.attempts:,} ", (f"({plural(node.retries, 'retry', 'retries')})", "yellow"))


def failure(run: Run) -> RenderableType | None:
    """Why a run failed: the step, the error, and the end of its traceback."""
    if not run.error:
        return None
    step = run.error.get("step")
    parts: list[RenderableType] = [
        Text.assemble((f"{step}: " if step else "", "bold"), (cause(run.error), "red"))
    ]
    frames = str(run.error.get("traceback") or "").rstrip().splitlines()
    if frames and frames[-1] == cause(run.error):
        frames.pop()
    frames = frames[-_TRACE_LINES:]
    if frames:
        parts.append(Padding(Text("\n".join(frames), "dim"), (0, 0, 0, 2)))
    return Group(*parts)


def failures(run: Run, incidents: Sequence[Incident], progress: Progress) -> RenderableType | None:
    """The latest of the steps that failed and let their run go on."""
    fatal = None if run.error is None else run.error.get("step")
    lines = [incident_line(each) for each in incidents if each.step != fatal]
    total = progress.by_state.get(StepState.FAILED, 0)
    if total > len(incidents):
        lines.insert(0, Text(f"The latest of {plural(total, 'failed step')}:", "dim"))
    return Group(*lines) if lines else None


def results(endings: Sequence[Ending], total: int) -> RenderableType | None:
    """The results of the last steps."""
    if not endings:
        return None
    lines = []
    for each in endings:
        line = Text.assemble((each.name, "bold"), f" → {each.text}")
        if each.size > len(each.text):
            line.append(f"… ({each.size:,} characters)", "dim")
        lines.append(line)
    if total > len(endings):
        lines.append(Text(f"… and {plural(total - len(endings), 'more result')}", "dim"))
    return Group(*lines)


# --- many runs


def listing(runs: Sequence[Run], width: int) -> Table:
    """Runs, a line each. Where there is no room for whole ids, as much of each as tells it from the others."""
    ids = [run.id for run in runs]
    columns: dict[str, Sequence[str | Text]] = {
        "run": ids if width >= _WIDE else abbreviated(ids),
        "workflow": [run.workflow for run in runs],
        "state": [Text(run.state.value, STYLES[run.state.value]) for run in runs],
        "created": [moment(run.created_at) for run in runs],
        "took": [duration(seconds) if (seconds := run_seconds(run)) is not None else "" for run in runs],
        "key": [run.key or "" for run in runs],
        "error": [one_line(cause(run.error), 200) for run in runs],
    }
    used = {name: cells for name, cells in columns.items() if any(cells)}
    found = _plain_table(*used)
    for column in found.columns:
        column.no_wrap = True
        column.overflow = "ellipsis" if column.header in ("key", "error", "workflow") else "fold"
        column.justify = "right" if column.header == "took" else "left"
    for cells in zip(*used.values(), strict=True):
        found.add_row(*cells)
    return found


# --- JSON


def run_json(run: Run) -> dict[str, Json]:
    """A run's fields; `steps` is left to the list of them."""
    fields = {**_fields(run), "seconds": run_seconds(run)}
    fields["step_count"] = fields.pop("steps")
    return fields


def run_document(
    run: Run, progress: Progress, steps: Iterable[Step] | None, result: Mapping[str, Json] | None
) -> dict[str, Json]:
    """A run with its progress, and with its steps and its result where they are given."""
    document = {**run_json(run), "progress": _fields(progress)}
    if steps is not None:
        document["steps"] = [{**_fields(step), "seconds": step.seconds} for step in steps]
    document["result"] = None if result is None else dict(result)
    return document


def dumps(value: Any) -> str:
    """JSON for programs, readable for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def _fields(record: Any) -> dict[str, Json]:
    found: dict[str, Json] = to_jsonable_python(
        {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    )
    return found
