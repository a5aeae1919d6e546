"""Which runs are meant: by workflow, state, tags and age.

The law: whatever is asked, an index leads to the runs, newest first, and reading stops with the page. A run's id begins
with its time, so `since` is a bound of the id. Conditions that one index has together are one range of it; with others
each is walked along its own, and leaps over what the others leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    Select,
    Uuid,
    case,
    cast,
    literal,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.sql.selectable import LateralFromClause

from ..tasks.errors import DefinitionError
from .states import RunState
from .tables import RunRow, RunTagRow
from .tags import tags_of

Since = datetime | timedelta  # a moment (with its time zone), or so long ago

_BOTH: ColumnElement[str] = literal_column("(run.state || ':' || run.workflow)")  # as its index has it
_LEAST, _LAST = UUID(int=0), UUID(int=(1 << 128) - 1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Search(NamedTuple):
    """Runs that all of this is true of."""

    workflow: str | None = None
    state: RunState | None = None
    tags: tuple[str, ...] = ()
    since: UUID | None = None  # the least id

    @property
    def everything(self) -> bool:
        """Whether nothing is asked, and so all runs are meant."""
        return self == Search()


def search(
    workflow: str | None,
    state: RunState | str | None,
    tags: Sequence[str],
    since: Since | None,
    status: RunState | str | None = None,
) -> Search:
    """What a caller asked; `status` is another name of `state`.

    Raises DefinitionError for an unknown state, for one under both names, a moment without its time zone, an odd tag.
    """
    found = _state(state, status)
    return Search(workflow, found, tuple(tags_of(tags)), None if since is None else least_id(since))


def _state(state: RunState | str | None, status: RunState | str | None) -> RunState | None:
    if state is not None and status is not None:
        raise DefinitionError("state= and status= are two names of one condition: give one of them")
    name, given = ("state", state) if status is None else ("status", status)
    try:
        return None if given is None else RunState(given)
    except ValueError:
        raise DefinitionError(f"{name}={given!r}: a run is {', '.join(RunState)}") from None


def least_id(since: Since) -> UUID:
    """The least id that a run accepted at this moment can have. Raises DefinitionError."""
    begin = datetime.now(UTC) - since if isinstance(since, timedelta) else since
    if begin.tzinfo is None:
        raise DefinitionError(f"since={since}: give a moment with its time zone, or a timedelta")
    milliseconds = max(0, (begin - _EPOCH) // timedelta(milliseconds=1))
    return UUID(int=milliseconds << 80)


def moment(least: UUID) -> datetime:
    """The moment of a least id."""
    return _EPOCH + timedelta(milliseconds=least.int >> 80)


class _Order(NamedTuple):
    """An order in which runs with something in common stand in an index, the newest last."""

    columns: tuple[Any, ...]  # the last one is the run's id
    values: tuple[str, ...]  # of all the others

    def below(self, last: Any, *, also: bool, since: UUID | None) -> list[ColumnElement[bool]]:
        """The runs up to an id, with it (`also`) or without: a range of this index, and of no other."""
        place = tuple_(*self.columns)
        end = tuple_(*map(literal, self.values), last)
        start = tuple_(*map(literal, self.values), literal(since or _LEAST))
        return [place <= end if also else place < end, place >= start]

    @property
    def newest_first(self) -> list[ColumnElement[Any]]:
        return [column.desc() for column in self.columns]


def found(
    columns: Sequence[Any], wanted: Search, before: UUID | None, limit: int
) -> Select[*tuple[Any, ...]]:
    """A page of runs, the newest first; `before`: the id where the last page ended."""
    orders = [_Order((RunTagRow.tag, RunTagRow.run_id), (tag,)) for tag in wanted.tags]
    if wanted.workflow is not None and wanted.state is not None:
        orders.append(_Order((_BOTH, RunRow.id), (f"{wanted.state}:{wanted.workflow}",)))
    elif wanted.workflow is not None:
        orders.append(_Order((RunRow.workflow, RunRow.id), (wanted.workflow,)))
    elif wanted.state is not None:
        orders.append(_Order((RunRow.state, RunRow.id), (wanted.state.value,)))
    elif not orders:
        orders.append(_Order((RunRow.id,), ()))
    if len(orders) > 1:
        return _met(columns, orders, wanted.since, before, limit)
    [order] = orders
    statement = select(*columns)
    if wanted.tags:
        statement = statement.join(RunTagRow, RunTagRow.run_id == RunRow.id)
    last = literal(_LAST if before is None else before)
    within = order.below(last, also=before is None, since=wanted.since)
    return statement.where(*within).order_by(*order.newest_first).limit(limit)


def _met(
    columns: Sequence[Any], orders: Sequence[_Order], since: UUID | None, before: UUID | None, limit: int
) -> Select[*tuple[Any, ...]]:
    """The runs that stand in all of these orders.

    In turn each order goes to its first run that is not newer than where the one before it went. Where the last one
    comes to the run of the first, they have met; else the next round begins where the last one is. So the rarest of
    them leads the others along, without anybody counting.
    """
    rounds = select(
        cast(literal(_LAST if before is None else before), Uuid).label("id"),
        literal_column("false" if before is None else "true").label("met"),
        literal_column("0").label("n"),
    ).cte("rounds", recursive=True)

    def following(order: _Order, last: Any, *, also: bool) -> Any:
        rows = select(order.columns[-1]).where(*order.below(last, also=also, since=since))
        return rows.order_by(*order.newest_first).limit(1).correlate(last.table).scalar_subquery()

    first, *others = orders
    from_there = following(first, rounds.c.id, also=True)
    at = case((rounds.c.met, following(first, rounds.c.id, also=False)), else_=from_there)
    turns = [_fenced(at, "turn0", rounds)]
    for order in others:
        turns.append(_fenced(following(order, turns[-1].c.id, also=True), f"turn{len(turns)}", rounds))
    met = turns[0].c.id == turns[-1].c.id
    again = (
        select(turns[-1].c.id, met, rounds.c.n + cast(met, Integer))
        .select_from(rounds, *turns)
        .where(rounds.c.n < limit, turns[-1].c.id.is_not(None))
    )
    rounds = rounds.union_all(again)
    return (
        select(*columns)
        .select_from(rounds)
        .join(RunRow, RunRow.id == rounds.c.id)
        .where(rounds.c.met, rounds.c.n > 0)
        .order_by(rounds.c.n)
    )


def _fenced(column: ColumnElement[Any], name: str, rounds: CTE) -> LateralFromClause:
    """One row, computed once: without OFFSET the planner would repeat the search wherever its result is used."""
    return select(column.label("id")).correlate(rounds).offset(0).lateral(name)
