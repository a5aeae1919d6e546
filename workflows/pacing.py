"""When a body may begin under a rate.

The law: each start takes a slot of its own, in the order of asking. Who comes a moment early waits for it on the
spot: parked, those that come late at once would begin at once. Who comes earlier than that is parked until then.
"""

from __future__ import annotations

import time

from .admission import Admission
from .journal import Journal
from .records import Claimed, Parked


def is_early(journal: Journal, admission: Admission, run: str, step: Claimed) -> bool:
    """Whether the step's rate does not let it begin yet: then it is parked."""
    rate = (step.options or {}).get("rate")
    if rate is None or (step.wait or {}).get("slot") == step.attempt:  # it waited for this attempt's slot
        return False
    seconds = admission.pace(rate)
    if seconds > admission.patience:
        journal.park(run, Parked(step.idx, step.lease, "slot", {"slot": step.attempt}, seconds))
        return True
    time.sleep(seconds)
    return False
