"""What is done at once when a run is over.

The law: nothing here is needed for correctness: who waits looks now and then, and the tick announces what the
end of a run woke. It is done at once because somebody is waiting.
"""

from __future__ import annotations

from .dispatch import Dispatcher
from .journal import Journal


def announce(journal: Journal, dispatcher: Dispatcher | None, run: str) -> None:
    """Wake whoever waits for a run that has just ended: clients, and the run that it is a child of."""
    parent = journal.notify(run)
    if parent is None or dispatcher is None:
        return
    for (waiting, workflow), ready in journal.take_woken(*parent).items():
        dispatcher.publish(waiting, workflow, ready)
