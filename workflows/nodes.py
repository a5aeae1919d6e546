"""The nodes of a run: its steps as a person counts them.

The law: a map with all its items is one node, and Postgres does the counting, so a run of any size comes
back as a few rows. What the engine runs for a map on its own account is no step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, case, func, select

from .additions import BARRIER
from .plan import EXPAND, GATHER, GATHER_SUFFIX, INNER, LOOP
from .states import StepState
from .tables import StepRow

BODY = StepRow.action.not_in(INNER)  # a row whose body somebody wrote


@dataclass(frozen=True, slots=True)
class Node:
    """A step as a person counts them: a map is one, with all its items."""

    idx: int
    name: str
    action: str
    is_map: bool
    states: dict[StepState, int]  # of the step; of its items, where it is a map that has them
    attempts: int
    retries: int
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Nodes:
    """Some of a run's nodes, and how many there are in all."""

    shown: list[Node]
    total: int
    retries: int
    as_of: datetime  # by the clock of Postgres, like all times in the journal


def _count(state: StepState) -> ColumnElement[int]:
    return func.count().filter(BODY, StepRow.state == state.value).label(state.value)


def statement(run_id: str, limit: int) -> Select[*tuple[Any, ...]]:
    """One row a node: the name of an item is its map's and a number in brackets."""
    # What the items of a map appended is one node as well, `each[].search`.
    name = case(
        (
            StepRow.name.contains("."),
            func.regexp_replace(
                func.regexp_replace(StepRow.name, r"\[[?\d]*\]", GATHER_SUFFIX, "g"), r"\[\]$", ""
            ),
        ),
        else_=func.split_part(StepRow.name, "[", 1),
    ).label("name")
    retries = func.sum(func.greatest(StepRow.attempt - 1, 0)).filter(BODY)
    return (
        select(
            func.min(StepRow.idx).label("idx"),
            name,
            func.max(StepRow.action).filter(BODY).label("action"),
            func.max(
                func.coalesce(
                    StepRow.options["map"]["action"].astext, StepRow.options["loop"]["action"].astext
                )
            )
            .filter(StepRow.action.in_([EXPAND, LOOP]))
            .label("mapped"),
            func.max(StepRow.state).filter(StepRow.action.in_([EXPAND, LOOP])).label("expand"),
            func.max(StepRow.state).filter(StepRow.action == GATHER).label("gather"),
            *(_count(state) for state in StepState),
            func.sum(StepRow.attempt).filter(BODY).label("attempts"),
            retries.label("retries"),
            func.min(StepRow.started_at).label("started_at"),
            func.max(StepRow.finished_at).label("finished_at"),
            func.count().over().label("total"),
            func.sum(retries).over().label("all_retries"),
            func.clock_timestamp().label("as_of"),
        )
        .where(StepRow.run_id == UUID(run_id), StepRow.name.not_like(f"%{BARRIER}"))
        .group_by(name)
        .order_by(
            (func.count().filter(StepRow.state == StepState.FAILED.value) > 0).desc(),
            (func.count().filter(StepRow.state == StepState.RUNNING.value) > 0).desc(),
            func.min(StepRow.idx),
        )
        .limit(limit)
    )


def node(row: Any) -> Node:
    """A row of the statement as a record."""
    counts = {state: int(getattr(row, state.value)) for state in StepState}
    states = {state: count for state, count in counts.items() if count}
    if row.expand is not None and not states:  # a map that has no items, or not yet
        states = {StepState(row.gather if row.expand == StepState.SUCCEEDED.value else row.expand): 1}
    return Node(
        row.idx,
        row.name,
        row.mapped or row.action,
        row.expand is not None,
        states,
        int(row.attempts or 0),
        int(row.retries or 0),
        row.started_at,
        row.finished_at,
    )
