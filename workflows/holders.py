"""Who is in front: what a step behind a limit waits for, in words.

The law: reads only, each by key or along an index, and names a few holders however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select

from ..tasks.database import Database
from . import words
from .gates import RATE
from .tables import GateRow, PermitRow, RunRow, StepRow

_NAMED = 3  # holders that are named


def waits_for(database: Database, line: str, options: Mapping[str, Any]) -> str:
    """What steps with these options that stand in a line wait for: the limit, and who holds it."""
    kind, _, key = line.removeprefix("gate:").partition(":")
    if kind == "rate":
        return f"the next slot of {rate(options)}{_next_slot(database, line)}"
    limit = _limit(options, kind, line)
    held = _holders(database, line)
    if kind == "runs":
        return f"the turn of its run: {words.plural(limit, 'run')} at once with concurrency key {key!r}{held}"
    if kind == "run":
        return f"max_parallel={limit} of the run{held}"
    if kind == "fair":
        return (
            f"the turn of its tenant on queue {key!r}: {words.plural(limit, 'place')} for all tenants{held}"
        )
    return f"{words.plural(limit, 'place')} of concurrency key {key!r}{held}"


def rate(options: Mapping[str, Any]) -> str:
    """The rate of steps with these options."""
    line, count, per = options.get("rate") or ("?", 1, 1.0)
    return f"rate {line.removeprefix(RATE)!r}: {count} in {per:g} s"


def _limit(options: Mapping[str, Any], kind: str, line: str) -> int:
    gates = [options["entry"]] if kind == "runs" and "entry" in options else options.get("gates", ())
    return int(next((limit for name, limit in gates if name == line), 1))


def _next_slot(database: Database, line: str) -> str:
    later = func.extract("epoch", GateRow.next_at - func.clock_timestamp())
    rows = database.read(select(later).where(GateRow.name == line))
    seconds = float(rows[0][0] or 0.0) if rows else 0.0
    return f", the next one in {words.duration(seconds)}" if seconds > 0 else ""


def _holders(database: Database, line: str) -> str:
    count = database.read(select(func.count()).where(PermitRow.gate == line))[0][0]
    if not count:
        return ", which are free: the next tick lets it in"
    rows = database.read(
        select(PermitRow.run_id, RunRow.workflow, StepRow.name, StepRow.state)
        .join(RunRow, RunRow.id == PermitRow.run_id)
        .outerjoin(StepRow, (StepRow.run_id == PermitRow.run_id) & (StepRow.idx == PermitRow.idx))
        .where(PermitRow.gate == line)
        .order_by(PermitRow.run_id, PermitRow.idx)
        .limit(_NAMED)
    )
    named = [
        f"run {run} of {workflow!r}" if step is None else f"step {step!r} ({state}) of run {run}"
        for run, workflow, step, state in rows
    ]
    more = f" and {count - len(named):,} more" if count > len(named) else ""
    return f", held by {', '.join(named)}{more}"
