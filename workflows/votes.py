"""Votes: what an approval is bound to, and what the votes come down to. Pure.

The law: an approval is bound to what was shown. Each vote carries the digest of it; a vote on anything else does
not count, nor does one of somebody who may not vote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from .records import Json, Signal

YES, NO = "approved", "rejected"
DIGEST_LENGTH = 12  # hex digits: enough for people to compare


def channel(step: str) -> str:
    """The name of the signals that are votes on a step."""
    return f"approval:{step}"


def digest(shown: Mapping[str, Json]) -> str:
    """The identity of what is asked: what is shown, and which asking of it this is."""
    text = json.dumps(shown, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


class Verdict(NamedTuple):
    """What the votes say so far."""

    yes: dict[str, str]  # who: comment
    no: tuple[str, str] | None  # the first who refused, with the comment


def count(votes: Iterable[Signal], shown: str, who: Collection[str]) -> Verdict:
    """The votes that count: on what is shown, by those who may. `who` empty: anybody. Pure."""
    yes: dict[str, str] = {}
    for vote in votes:
        by, comment = vote.payload["by"], vote.payload["comment"]
        if vote.payload["shown"] != shown or (who and by not in who):
            continue
        if vote.payload["vote"] == NO:
            return Verdict(yes, (by, comment))
        yes.setdefault(by, comment)
    return Verdict(yes, None)


def contradiction(given: Mapping[str, Json]) -> tuple[str, str] | None:
    """The input that does not go with the others, and why: pure."""
    who, needed = given.get("who") or (), given.get("needed") or 1
    after, to = given.get("escalate_after"), given.get("escalate_to") or ()
    expires = given.get("expires")
    if (after is None) != (not to):
        return "escalate_to", "escalate_after= and escalate_to= go together: when, and to whom"
    if after is not None and expires is not None and after >= expires:
        return "escalate_after", f"it must come before expires={expires:g}, when nobody is asked any more"
    if who and needed > len({*who, *to}):
        return "needed", f"{needed} people must approve, and only {len({*who, *to})} may: name more in who="
    return None
