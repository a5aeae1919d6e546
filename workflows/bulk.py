"""One verb for many runs.

The law: one run after the other, each in its own transaction, found a page at a time by an index: however many there
are, no lock is held for long, and a bulk that is broken off has done a part and harmed nothing. One that refuses
(somebody else was there first) stops none of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ..tasks.errors import DefinitionError, NotFound, ResourceError, StateError
from ..tasks.hints import choices
from .queries import Queries
from .records import Run
from .search import Search
from .states import RunState

_PAGE = 200
COUNTED = 100_000  # runs; a dry run counts no further

_ENDED = (RunState.FAILED, RunState.CANCELLED)
_OPEN = (RunState.PENDING, RunState.RUNNING)

# What a verb can be done to. Of a run that succeeded a rerun has something to compute only where changes say what.
FITS: dict[str, tuple[RunState, ...]] = {
    "retry": _ENDED,
    "rerun": _ENDED,
    "cancel": (*_OPEN, RunState.PAUSED),
    "pause": _OPEN,
    "resume": (RunState.PAUSED,),
    "delete": (RunState.SUCCEEDED, *_ENDED),
}


class Bulk(NamedTuple):
    """What became of many runs."""

    matched: int  # runs that were meant; of a dry run no more than 100,001
    done: int
    refused: list[tuple[str, str]]  # run and reason


def apply(
    deeds: Mapping[str, Callable[..., object]],
    queries: Queries,
    verb: str,
    wanted: Search,
    changes: Mapping[str, object],
    *,
    dry_run: bool,
) -> Bulk:
    """Do it, a rerun with these changes.

    Raises DefinitionError for an unknown verb, changes or a state that do not fit it, or no condition at all.
    """
    fits = _fits(verb, changes)
    searches = _searches(verb, wanted, fits, changed=bool(changes))
    if dry_run:
        left = COUNTED + 1
        for each in searches:
            left -= queries.count(each, left) if left else 0
        return Bulk(COUNTED + 1 - left, 0, [])
    deed = partial(deeds[verb], **changes)
    matched = 0
    made: set[str] = set()  # a rerun that is over before the last one has begun is not meant
    refused: list[tuple[str, str]] = []
    for each in searches:
        for run in _runs(queries, each):
            if run in made:
                continue
            matched += 1
            try:
                # `False` says that somebody else has done it in between, which is as good.
                done = deed(run)
            except (StateError, DefinitionError, ResourceError) as error:
                if not (isinstance(error, NotFound) and error.kind == "run"):
                    refused.append((run, str(error)))
                continue
            if isinstance(done, Run):
                made.add(done.id)
    # What refused may have been done with another run of these: a paused parent lets its children go.
    refused = [(run, why) for run, why in refused if not _gone_on(queries, fits, run)]
    return Bulk(matched, matched - len(refused), refused)


def _gone_on(queries: Queries, fits: Sequence[RunState], run: str) -> bool:
    """Whether a run is no longer what the verb is for."""
    try:
        return queries.run(run).state not in fits
    except NotFound:
        return True


def _fits(verb: str, changes: Mapping[str, object]) -> tuple[RunState, ...]:
    """The states of the runs that it can be done to."""
    if verb not in FITS:
        raise DefinitionError(
            f"{verb!r} is nothing that can be done to many runs{choices(verb, FITS, 'there are')}"
        )
    if not changes:
        return FITS[verb]
    if verb != "rerun":
        raise DefinitionError(
            f"{next(iter(changes))}= says what a rerun computes again, and the verb is {verb!r}: leave it out"
        )
    return (*FITS[verb], RunState.SUCCEEDED)


def _searches(verb: str, wanted: Search, fits: Sequence[RunState], *, changed: bool) -> list[Search]:
    """One search for each state, so that each is led by its index."""
    if wanted.everything:
        raise DefinitionError(f"{verb} of all runs there are: give a workflow, a state, tags or since")
    if wanted.state is None:
        return [wanted._replace(state=state) for state in fits]
    if wanted.state not in fits:
        hint = ""
        if verb == "rerun" and wanted.state is RunState.SUCCEEDED and not changed:
            hint = ": give from_step, params or inputs, for without them nothing of these would be computed again"
        raise DefinitionError(f"{verb} is for runs that are {', '.join(fits)}, not {wanted.state}{hint}")
    return [wanted]


def _runs(queries: Queries, wanted: Search) -> Iterator[str]:
    last: str | None = None
    while True:
        page = [run.id for run in queries.runs(wanted, last, _PAGE)]
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1]
