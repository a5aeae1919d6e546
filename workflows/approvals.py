"""Approvals: a step that goes on once people said yes to what they were shown.

The law: the votes that the journal has decide, counted anew whenever the step is woken: by a vote, or by the time
at which others are asked as well, or nobody any more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from secrets import token_hex

from ..tasks.database import Connection
from ..tasks.errors import ApprovalRejected, InputError, WaitExpired
from .execution import failed
from .here import Here
from .kinds import CONTRACTS
from .records import Claimed, Json, Outcome, Parked
from .votes import channel, contradiction, count, digest
from .waiting import noted, parked, succeeded


def approve(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome | None:
    """Wait for approvals; escalate, expire, or end by what was voted."""
    given = CONTRACTS[step.action].validate(inputs)
    _check(given)
    began, note = time.monotonic(), noted(step)
    shown = {"message": given.get("message", ""), "show": given.get("show") or {}}
    ballot = note.get("ballot") or token_hex(4)  # asked again (a retry, say), the old votes do not count
    asking = digest({**shown, "ballot": ballot})
    expires, after = given.get("expires"), given.get("escalate_after")
    timed_out = note.get("woken") == "time"
    escalated = bool(note.get("escalated")) or (timed_out and after is not None)
    who = [*(given.get("who") or ()), *(given.get("escalate_to") or () if escalated else ())]
    needed = given.get("needed", 1)

    def decision(connection: Connection) -> Outcome | Parked:
        votes = here.journal.signals(connection, here.run, channel(step.name))
        verdict = count(votes, asking, who)
        if verdict.no is not None:
            return failed(step, ApprovalRejected(step.name, *verdict.no), began)
        if len(verdict.yes) >= needed:
            return succeeded(step, {"approved": True, "by": list(verdict.yes), "comments": verdict.yes})
        if timed_out and expires is not None and escalated == bool(note.get("escalated")):
            return failed(step, WaitExpired(f"{needed} approvals", expires), began)
        if escalated and not note.get("escalated"):
            here.journal.tell(connection, here.run, "step.escalated", step.idx, {"to": given["escalate_to"]})
        asked = {
            **shown,
            "ballot": ballot,
            "digest": asking,
            "who": who,
            "needed": needed,
            "escalated": escalated,
        }
        asked["yes"] = list(verdict.yes)
        return parked(step, channel(step.name), asked, **_patience(note, timed_out, expires, after))

    return here.journal.decide(here.run, decision)


def _patience(
    note: Mapping[str, Json], timed_out: bool, expires: float | None, after: float | None
) -> dict[str, Json]:
    """How long the step waits from now on, at most."""
    if not note:
        return {"seconds": min((each for each in (expires, after) if each is not None), default=None)}
    if not timed_out:
        return {"until": note.get("until")}
    if expires is None or after is None:
        return {}
    # Escalated just now: the rest of the time until it expires, from when it was due, however late this is.
    return {"until": (datetime.fromisoformat(note["until"]) + timedelta(seconds=expires - after)).isoformat()}


def _check(given: Mapping[str, Json]) -> None:
    """Raises InputError for options that contradict each other (known only now, where they are references)."""
    problem = contradiction(given)
    if problem is not None:
        raise InputError("trellis.approve", {problem[0]: problem[1]})
