"""What follows the end of a run: compensation, and whatever else its `hooks` name.

The law: what is to follow is a mark on the run's own row (`follow`), written when it was accepted, so no crash can lose
it: who ended the run does it at once, and else the next tick. A follower works inside the transaction that locks the
run's row; the last one's takes the mark away. So what a follower writes is written once, and what it sends
elsewhere at least once.

`hooks` says what is to follow: {"compensation": the planned steps (see `plan.Plan.undo`)}, and what Celery
is to hear (see `answering`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..tasks.database import Connection
from ..tasks.logs import get_logger
from . import answering, compensation
from .control import ask
from .dispatch import Dispatcher
from .journal import Journal
from .records import Ended, Json, Ready
from .states import RunState

_BATCH = 500  # runs in one tick

log = get_logger("trellis.following")


class Following(NamedTuple):
    """What a follower works with."""

    journal: Journal
    dispatcher: (
        Dispatcher | None
    )  # None: this process has no broker, and the next tick announces what is ready
    connection: Connection  # inside the transaction that holds the run's row
    ended: Ended


class Begun(NamedTuple):
    """A run that a follower has inserted: its ready steps are to be published after the commit."""

    run: str
    workflow: str
    ready: Sequence[Ready]


def _compensate(following: Following, rows: Json) -> Begun | None:
    publish = following.dispatcher is not None
    begun = compensation.insert(following.journal, following.connection, following.ended, rows, sent=publish)
    return None if begun is None else Begun(*begun)


def _answer(following: Following, kept: Json) -> None:
    dispatcher, journal, ended = following.dispatcher, following.journal, following.ended
    assert dispatcher is not None  # nobody follows without one
    value = answering.value_of(journal, following.connection, ended, dispatcher.value_limit)
    answering.send_signatures(dispatcher.app, ended, value, kept)


def _go_on(following: Following, kept: Json) -> None:
    dispatcher, journal, ended = following.dispatcher, following.journal, following.ended
    assert dispatcher is not None
    value = answering.value_of(journal, following.connection, ended, dispatcher.value_limit, kept["step"])
    answering.go_on(dispatcher.app, ended, value, kept)


def _revoke(following: Following, _: Json) -> None:
    assert following.dispatcher is not None
    answering.revoke(following.dispatcher, following.journal, following.connection, following.ended)


# Who acts on which entry of a run's hooks, in this order. A follower may be called again for the same end (after a
# crash, or when a later one failed), and has to see by itself that it has done its part.
FOLLOWERS: dict[str, Callable[[Following, Json], Begun | None]] = {
    "compensation": _compensate,
    "tasks": _revoke,
    "signatures": _answer,
    "canvas": _go_on,
}


def follow(journal: Journal, dispatcher: Dispatcher | None, run: str) -> None:
    """Do what follows the end of a run; nothing where it is done, or somebody else is at it."""
    for turn, (name, follower) in enumerate(FOLLOWERS.items(), 1):
        last = turn == len(FOLLOWERS)

        def once(
            name: str = name,
            follower: Callable[[Following, Json], Begun | None] = follower,
            last: bool = last,
        ) -> tuple[bool, Begun | None]:
            with journal.database.transaction() as connection:
                ended = _take(connection, run)
                if ended is None:
                    return False, None
                wanted = ended.hooks.get(name)
                begun = None
                if wanted is not None:
                    begun = follower(Following(journal, dispatcher, connection, ended), wanted)
                if last:
                    ask(connection, "followed", run=run)
                return True, begun

        mine, begun = journal.database.again(once)
        if not mine:
            return
        if begun is not None and dispatcher is not None:
            dispatcher.publish(begun.run, begun.workflow, begun.ready)


def follow_all(journal: Journal, dispatcher: Dispatcher) -> int:
    """Do what follows for every run for which nobody did: a chore of the tick."""
    with journal.database.connection() as connection:
        runs = [str(row[0]) for row in ask(connection, "to_follow", limit=_BATCH)]
    for run in runs:
        try:
            follow(journal, dispatcher, run)
        except Exception:
            log.exception("follow.failed", run=run)  # the others must not wait for it
    return len(runs)


def _take(connection: Connection, run: str) -> Ended | None:
    rows = ask(connection, "take_ended", run=run)
    if not rows:
        return None
    run_id, workflow, state, *rest = rows[0]
    return Ended(run_id, workflow, RunState(state), *rest)
