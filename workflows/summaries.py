"""What a person wants to see of a run of any size, summed up by Postgres.

The law: reads only. What comes back is as long as a screen, never as long as the run: steps are counted
where they lie, a map and its items are one node, and every list has a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Text, and_, cast, extract, func, select, true

from ..tasks.database import Database
from ..tasks.errors import NotFound
from . import nodes
from .additions import Addition, AppendedRow, additions
from .nodes import Nodes
from .plan import GATHER_SUFFIX
from .records import Json
from .states import StepState
from .tables import DefinitionRow, EventRow, HeartbeatRow, RunRow, StepRow

_SHORT = 13  # characters of an id that tell its millisecond
_HEX = frozenset("0123456789abcdef")
_CANDIDATES = 5  # ids that an ambiguous one is answered with
_NAMES = 1000  # workflows that a misspelled name is compared with
_APPENDED = 20_000  # appended steps that a picture looks at


@dataclass(frozen=True, slots=True)
class Running:
    """A step that runs now."""

    name: str
    attempt: int
    seconds: float
    progress: Json
    worker: str | None


@dataclass(frozen=True, slots=True)
class Incident:
    """An attempt that failed, or the end of a run before its time."""

    id: int
    at: datetime
    kind: str  # step.retry, step.failed, run.failed, run.cancelled
    step: str | None
    attempt: int | None
    detail: dict[str, Json]  # type, message, delay


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of one of the last steps, as the beginning of its JSON text."""

    name: str
    text: str
    size: int  # characters of the whole text


class Summaries:
    """Reads for screens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _all(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        return self._database.read(statement)

    @staticmethod
    def is_id(text: str) -> bool:
        """Whether a text can be the id of a run, or the beginning of one."""
        digits = text.lower().replace("-", "")
        return 0 < len(digits) <= 32 and _HEX.issuperset(digits)

    def find(self, text: str) -> str:
        """The id of the only run whose id begins so. Raises NotFound."""
        digits = text.lower().replace("-", "")
        if not self.is_id(text):
            raise NotFound("run", text, "give its id, or the beginning of it; `trellis runs` lists them")
        if len(digits) == 32:
            return str(UUID(digits))
        between = RunRow.id.between(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
        rows = self._all(select(RunRow.id).where(between).order_by(RunRow.id.desc()).limit(_CANDIDATES + 1))
        found = [str(row[0]) for row in rows]
        if not found:
            raise NotFound("run", text, "no id begins so; `trellis runs` lists them")
        if len(found) > 1:
            shown = [*abbreviated(found)[:_CANDIDATES], *(["…"] if len(found) > _CANDIDATES else [])]
            raise NotFound("run", text, f"give more of its id, since several begin so: {', '.join(shown)}")
        return found[0]

    def workflows(self) -> list[str]:
        """The names of the workflows that the journal knows."""
        # From one name to the next: a name may have a definition for each of its runs.
        by_name = select(DefinitionRow.name).order_by(DefinitionRow.name).limit(1)
        names = select(by_name.scalar_subquery().label("name")).cte("names", recursive=True)
        following = by_name.where(DefinitionRow.name > names.c.name).scalar_subquery()
        names = names.union_all(select(following).where(names.c.name.is_not(None)))
        rows = self._all(select(names.c.name).where(names.c.name.is_not(None)).limit(_NAMES))
        return [row[0] for row in rows]

    def age(self, run_id: str) -> float:
        """Seconds since a run began, or since it was accepted where it did not begin yet."""
        began = func.coalesce(RunRow.started_at, RunRow.created_at)
        rows = self._all(
            select(extract("epoch", func.clock_timestamp() - began)).where(RunRow.id == UUID(run_id))
        )
        return max(0.0, float(rows[0][0])) if rows else 0.0

    def nodes(self, run_id: str, limit: int) -> Nodes:
        """Nodes of a run, in the order of its graph: those that failed, those that run, then the first ones."""
        rows = self._all(nodes.statement(run_id, limit))
        if not rows:
            return Nodes([], 0, 0, self._all(select(func.clock_timestamp()))[0][0])
        first = rows[0]
        shown = sorted((nodes.node(row) for row in rows), key=lambda each: each.idx)
        return Nodes(shown, first.total, int(first.all_retries or 0), first.as_of)

    def running(self, run_id: str, limit: int) -> list[Running]:
        """The steps that run now, the longest first."""
        seconds = extract("epoch", func.clock_timestamp() - StepRow.started_at)
        rows = self._all(
            select(StepRow.name, StepRow.attempt, seconds, StepRow.progress, StepRow.worker)
            .where(StepRow.run_id == UUID(run_id), StepRow.state == StepState.RUNNING.value)
            .order_by(StepRow.started_at, StepRow.idx)
            .limit(limit)
        )
        return [
            Running(name, attempt, max(0.0, float(ran or 0.0)), progress, worker)
            for name, attempt, ran, progress, worker in rows
        ]

    def incidents(self, run_id: str, limit: int, *, kind: str | None = None) -> list[Incident]:
        """The latest incidents of a run, oldest first."""
        wanted = true() if kind is None else EventRow.kind == kind
        rows = self._all(
            select(
                EventRow.id,
                EventRow.at,
                EventRow.kind,
                StepRow.name,
                EventRow.attempt,
                EventRow.detail.op("-")("traceback"),
            )
            .outerjoin(StepRow, and_(StepRow.run_id == EventRow.run_id, StepRow.idx == EventRow.idx))
            .where(EventRow.run_id == UUID(run_id), wanted)
            .order_by(EventRow.id.desc())
            .limit(limit)
        )
        return [
            Incident(number, at, what, step, attempt, detail or {})
            for number, at, what, step, attempt, detail in reversed(rows)
        ]

    def endings(self, run_id: str, limit: int, characters: int) -> tuple[list[Ending], int]:
        """The results of some of the last steps (those nothing depends on), and how many these are."""
        text = cast(StepRow.result, Text)
        last = (
            StepRow.run_id == UUID(run_id),
            func.cardinality(StepRow.dependents) == 0,
            StepRow.state.in_([StepState.SUCCEEDED.value, StepState.FAILED.value]),
        )
        rows = self._all(
            select(StepRow.name, func.left(text, characters), func.length(text))
            .where(*last)
            .order_by(StepRow.idx)
            .limit(limit)
        )
        found = [
            Ending(name.removesuffix(GATHER_SUFFIX), part or "null", size or 4) for name, part, size in rows
        ]
        total = len(found) if len(found) < limit else self._all(select(func.count()).where(*last))[0][0]
        return found, total

    def states(self, run_id: str) -> dict[str, str]:
        """The state of every step by name, items of maps among them: for pictures."""
        rows = self._all(select(StepRow.name, StepRow.state).where(StepRow.run_id == UUID(run_id)))
        return dict(rows)

    def additions(self, run_id: str) -> list[Addition]:
        """What the steps of a run have appended: for pictures."""
        own = (StepRow.run_id == UUID(run_id), StepRow.name.contains("."))
        rows = self._all(
            select(
                StepRow.idx,
                StepRow.name,
                func.coalesce(
                    StepRow.options["map"]["action"].astext,
                    StepRow.options["loop"]["action"].astext,
                    StepRow.action,
                ),
                StepRow.action,
                StepRow.state,
                StepRow.dependents,
            )
            .where(*own)
            .order_by(StepRow.idx)
            .limit(_APPENDED)
        )
        appended = [AppendedRow(*row) for row in rows]
        ids = {~each if each < 0 else each for row in appended for each in row.dependents}
        others = self._all(
            select(StepRow.idx, StepRow.name).where(
                StepRow.run_id == UUID(run_id), StepRow.idx.in_(ids - {row.idx for row in appended})
            )
        )
        names = {idx: name.partition("[")[0] for idx, name in others}
        return additions(appended, names)

    def silence(self) -> float | None:
        """Seconds since the last tick arrived; None where none ever did."""
        age = extract("epoch", func.clock_timestamp() - HeartbeatRow.at)
        rows = self._all(select(age).where(HeartbeatRow.name == "tick"))
        return float(rows[0][0]) if rows else None

    def needs(self, run_id: str, limit: int) -> set[tuple[str, str]]:
        """The actions of steps that are ready, each with its queue."""
        rows = self._all(
            select(StepRow.action, StepRow.queue)
            .where(StepRow.run_id == UUID(run_id), StepRow.state == StepState.READY.value)
            .where(StepRow.due_at <= func.clock_timestamp())
            .distinct()
            .limit(limit)
        )
        return {(action, queue) for action, queue in rows}


def abbreviated(ids: Sequence[str]) -> list[str]:
    """The shortest beginnings, of one length, that tell these ids apart."""
    length = _SHORT
    while length < 36 and len({each[:length] for each in ids}) < len(set(ids)):
        length += 1
    return [each[:length].rstrip("-") for each in ids]
