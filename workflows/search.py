"""Which runs are meant: by workflow, state, tags and age.

The law: whatever is asked, an index leads to the runs, newest first, and reading stops with the page. A run's id begins
with its time, so `since` is a bound of the id; with a tag it is the tag that leads.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Select, exists
from sqlalchemy.orm import InstrumentedAttribute

from ..tasks.errors import DefinitionError
from .states import RunState
from .tables import RunRow, RunTagRow
from .tags import tags_of

Since = datetime | timedelta  # a moment (with its time zone), or so long ago

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
    workflow: str | None, state: RunState | str | None, tags: Sequence[str], since: Since | None
) -> Search:
    """What a caller asked. Raises DefinitionError for an unknown state, a moment without its time zone, an odd tag."""
    return Search(workflow, _state(state), tuple(tags_of(tags)), None if since is None else least_id(since))


def _state(state: RunState | str | None) -> RunState | None:
    try:
        return None if state is None else RunState(state)
    except ValueError:
        raise DefinitionError(f"state={state!r}: a run is {', '.join(RunState)}") from None


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


def found(
    statement: Select[*tuple[Any, ...]], wanted: Search
) -> tuple[Select[*tuple[Any, ...]], InstrumentedAttribute[UUID]]:
    """The statement on runs with these conditions, and the column whose order is that of the index that leads."""
    place: InstrumentedAttribute[UUID] = RunRow.id
    if wanted.tags:
        first, *others = wanted.tags
        place = RunTagRow.run_id
        statement = statement.join(RunTagRow, RunTagRow.run_id == RunRow.id).where(RunTagRow.tag == first)
        for tag in others:
            statement = statement.where(_has(tag))
    if wanted.workflow is not None:
        statement = statement.where(RunRow.workflow == wanted.workflow)
    if wanted.state is not None:
        statement = statement.where(RunRow.state == wanted.state.value)
    if wanted.since is not None:
        statement = statement.where(place >= wanted.since)
    return statement, place


def _has(tag: str) -> Any:
    other = RunTagRow.__table__.alias()
    return exists().where(other.c.run_id == RunRow.id, other.c.tag == tag)
