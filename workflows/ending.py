"""What is done at once when a run is over.

The law: nothing here is needed for correctness: who waits looks now and then, and the tick announces what the
end of a run woke, and does what follows it. It is done at once because somebody is waiting.
"""

from __future__ import annotations

from ..tasks.logs import get_logger
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
        try:
            follow(journal, dispatcher, run)
        except Exception:
            log.exception("follow.failed", run=run)  # the next tick tries again
