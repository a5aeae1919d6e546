"""What is done at once when a run is over.

The law: nothing here is needed for correctness: who waits looks now and then, and the tick announces what the
end of a run woke, and does what follows it. It is done at once because somebody is waiting.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks.logs import get_logger
from . import lingering
from .dispatch import Dispatcher
from .following import follow
from .journal import Journal

log = get_logger("trellis.ending")


def announce(journal: Journal, dispatcher: Dispatcher | None, run: str) -> None:
    """Wake whoever waits for a run that has just ended, clients and the run that it is a child of; do what follows."""
    parent, follows = journal.notify(run)
    if dispatcher is None:
        return
    if parent is not None:
        for (waiting, workflow), ready in journal.take_woken(*parent).items():
            dispatcher.publish(waiting, workflow, ready)
    if follows:
        _follow(journal, dispatcher, run)


def let_go(journal: Journal, dispatcher: Dispatcher, run: str, leases: Iterable[str]) -> None:
    """No body is at work any more under these leases: if their run is over, what waited for that may begin."""
    for waiting in lingering.let_go(journal.database, run, leases):
        _follow(journal, dispatcher, waiting)


def _follow(journal: Journal, dispatcher: Dispatcher, run: str) -> None:
    try:
        follow(journal, dispatcher, run)
    except Exception:
        log.exception("follow.failed", run=run)  # the next tick tries again
