"""What follows the end of a run: compensation, and whatever else its `hooks` name.

The law: what is to follow is a mark on the run's own row (`follow`), written when it was accepted, so no crash can lose
it: who ended the run does it at once, and else the next tick. A follower works inside the transaction that locks the
run's row; the last one's takes the mark away. So what a follower writes is written once, and what it sends
elsewhere at least once. Nobody waits for anything but the compensation, which begins when no body of the run is at
work any more (see `lingering`): the others are done meanwhile, and the mark stays.

`hooks` says what is to follow: {"compensation": the planned steps (see `plan.Plan.undo`)}, and what Celery
is to hear (see `answering`). {"waits": true} is written beside it while the compensation waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ..tasks.database import Connection
from ..tasks.logs import get_logger
from . import answering, compensation
from .compensation import WAITS
from .control import ask
from .dispatch import Dispatcher
from .journal import Journal
from .records import Ended, Json, Ready
from .states import RunState

COMPENSATION = "compensation"

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


Waits = Literal["waits"]
Answer = Begun | Waits | None


def _compensate(following: Following, rows: Json) -> Answer:
    publish = following.dispatcher is not None
    begun = compensation.insert(following.journal, following.connection, following.ended, rows, sent=publish)
    return Begun(*begun) if isinstance(begun, tuple) else begun


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
FOLLOWERS: dict[str, Callable[[Following, Json], Answer]] = {
    COMPENSATION: _compensate,
    "tasks": _revoke,
    "signatures": _answer,
    "canvas": _go_on,
}


def follow(journal: Journal, dispatcher: Dispatcher | None, run: str) -> bool:
    """Do what follows the end of a run; False where it is done, somebody else is at it, or it has to wait longer."""
    waits = False
    for turn, name in enumerate(FOLLOWERS, 1):
        closes = ("postpone" if waits else "followed") if turn == len(FOLLOWERS) else None

        def once(name: str = name, closes: str | None = closes) -> tuple[bool, Answer]:
            with journal.database.transaction() as connection:
                ended = _take(connection, run)
                if ended is None:
                    return False, None
                wanted, again, answer = ended.hooks.get(name), WAITS in ended.hooks, None
                if wanted is not None and (name == COMPENSATION or not again):
                    answer = FOLLOWERS[name](Following(journal, dispatcher, connection, ended), wanted)
                if closes is not None:
                    ask(connection, closes, run=run)
                return not (again and answer == WAITS), answer

        mine, answer = journal.database.again(once)
        if not mine:
            return False
        if answer == WAITS:
            waits = True
        elif answer is not None and dispatcher is not None:
            dispatcher.publish(answer.run, answer.workflow, answer.ready)
    return True


def follow_all(journal: Journal, dispatcher: Dispatcher) -> int:
    """Do what follows for every run for which nobody did: a chore of the tick."""
    with journal.database.connection() as connection:
        runs = [str(row[0]) for row in ask(connection, "to_follow", limit=_BATCH)]
    done = 0
    for run in runs:
        try:
            done += follow(journal, dispatcher, run)
        except Exception:
            log.exception("follow.failed", run=run)  # the others must not wait for it
    return done


def _take(connection: Connection, run: str) -> Ended | None:
    rows = ask(connection, "take_ended", run=run)
    if not rows:
        return None
    run_id, workflow, state, *rest = rows[0]
    return Ended(run_id, workflow, RunState(state), *rest)
