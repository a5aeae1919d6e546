"""What the audit log says: a page at a time, the newest first.

The law: reads only. Whatever is asked, one index has its rows in the order in which they are shown; what else is asked
is looked at on the way. A filter is a value, never a piece of SQL.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO
from uuid import UUID

from pydantic_core import to_jsonable_python
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Select,
    Text,
    Uuid,
    column,
    literal,
    literal_column,
    select,
    table,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB

from ..tasks.database import Database
from ..tasks.errors import ParameterError
from ..tasks.hints import closest
from .actions import AuditAction, Outcome

_PAGE = 1000
_EARLY, _LATE = (each.replace(tzinfo=UTC) for each in (datetime.min, datetime.max))
_LAST = 2**63 - 1
_OF_RUN = re.compile(r"(?:run|step):(?P<run>[0-9a-f-]{36})(?:$|/)")

_LOG = table(
    "audit_log",
    column("id", BigInteger),
    column("at", DateTime(timezone=True)),
    *(column(name, Text) for name in ("actor", "tenant", "action", "target", "outcome", "correlation_id")),
    column("run_id", Uuid),
    column("detail", JSONB),
)
# From the one with the fewest rows to the one with the most: the index of the first that is asked for is walked.
# Beside each what its index is of.
_ORDERS: tuple[tuple[str, str], ...] = (
    ("run_id", "run_id IS NOT NULL"),
    ("target", "target !~ '^(run|step):'"),
    ("outcome", "outcome <> 'done'"),
    ("tenant", "tenant IS NOT NULL"),
    ("actor", ""),
    ("action", ""),
)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of the audit log."""

    id: int
    at: datetime  # by the database's clock
    actor: str
    tenant: str | None
    action: str
    target: str | None
    outcome: str
    correlation_id: str | None
    run_id: str | None
    detail: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows: those for which everything holds that is given."""

    action: str | None = None
    actor: str | None = None
    tenant: str | None = None
    target: str | None = None
    run_id: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None  # exclusive

    def __post_init__(self) -> None:
        """Raises ParameterError for an action or an outcome that the catalogue does not have, and for no run's id."""
        for name, value, catalogue in (
            ("action", self.action, AuditAction),
            ("outcome", self.outcome, Outcome),
        ):
            known = [each.value for each in catalogue]
            if value is not None and value not in known:
                close = closest(value, known)
                meant = f"did you mean {close!r}?" if close is not None else f"there are {', '.join(known)}"
                raise ParameterError({name: f"there is no {name} {value!r}; {meant}"})
        try:
            UUID(self.run_id or str(UUID(int=0)))
        except ValueError:
            raise ParameterError({"run_id": f"{self.run_id!r} is not the id of a run"}) from None
        for name, moment in (("since", self.since), ("until", self.until)):
            if moment is not None and moment.tzinfo is None:
                raise ParameterError({name: f"{moment}: give a moment with its time zone"})


Place = tuple[datetime, int]  # of a row in the order of what is shown


def page(which: Filter, limit: int, before: Place | None = None) -> Select[*tuple[Any, ...]]:
    """The statement for a page of rows; before: the place where the last page ended."""
    asked = {name: getattr(which, name) for name, _ in _ORDERS if getattr(which, name) is not None}
    run = _OF_RUN.match(which.target or "")
    if run is not None:  # rows of runs are found by the run
        asked.setdefault("run_id", run["run"])
    order = next((each for each in _ORDERS if each[0] in asked and _fits(*each, asked)), None)
    along: list[ColumnElement[Any]] = [_LOG.c.at, _LOG.c.id]
    values: list[ColumnElement[Any]] = []
    statement = select(*_LOG.c).limit(limit)
    if order is not None:
        name, of = order
        along.insert(0, _LOG.c[name])
        values.append(literal(asked.pop(name), _LOG.c[name].type))
        statement = statement.where(literal_column(of)) if of else statement
    for name, value in asked.items():
        statement = statement.where(_LOG.c[name] == value)
    newest = before or ((which.until, 0) if which.until is not None else (_LATE, _LAST))
    return statement.where(
        tuple_(*along) < tuple_(*values, *_place(*newest)),
        tuple_(*along) >= tuple_(*values, *_place(which.since or _EARLY, 0)),
    ).order_by(*(each.desc() for each in along))


def _place(at: datetime, id_: int) -> tuple[ColumnElement[Any], ...]:
    return literal(at, _LOG.c.at.type), literal(id_, _LOG.c.id.type)


def _fits(name: str, of: str, asked: Mapping[str, Any]) -> bool:
    """Whether an index has the rows that are asked for."""
    if name == "outcome":
        return bool(asked[name] != Outcome.DONE)
    return name != "target" or not str(asked[name]).startswith(("run:", "step:"))


class History:
    """Reads of one database's audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rows(
        self, which: Filter | None = None, *, limit: int = 100, before: AuditRow | None = None
    ) -> list[AuditRow]:
        """The newest rows, the newest first; before: the last one of the page before."""
        place = None if before is None else (before.at, before.id)
        found = self._database.read(page(which or Filter(), limit, place))
        return [
            AuditRow(**{**row._asdict(), "run_id": None if row.run_id is None else str(row.run_id)})
            for row in found
        ]

    def all(self, which: Filter | None = None) -> Iterator[AuditRow]:
        """All rows, the newest first, in bounded memory."""
        before: AuditRow | None = None
        while found := self.rows(which, limit=_PAGE, before=before):
            yield from found
            before = found[-1]


def document(row: AuditRow) -> dict[str, Any]:
    """A row as JSON."""
    return {name: to_jsonable_python(getattr(row, name)) for name in AuditRow.__dataclass_fields__}


def write_json_lines(rows: Iterator[AuditRow], out: TextIO) -> int:
    """One JSON object a line; answers with how many."""
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - the last number is the count
        out.write(json.dumps(document(row), ensure_ascii=False) + "\n")
    return count


def write_csv(rows: Iterator[AuditRow], out: TextIO) -> int:
    """A table with a head, details as JSON; answers with how many rows.

    A cell that a spreadsheet would take for a formula begins with an apostrophe (OWASP, CSV injection).
    """
    names = list(AuditRow.__dataclass_fields__)
    writer = csv.writer(out)
    writer.writerow(names)
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - the last number is the count
        writer.writerow([_cell(value) for value in document(row).values()])
    return count


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
