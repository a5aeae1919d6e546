"""Which fact may be a link to which other one: pure.

The law: a fact covers another one if every search that would find that one finds this one, whatever its filters ask
for. It is trusted as much, from the same source, and of what is said of the other nothing is missing. What is said
again without a time of its own is of the time at which it was said first. `part_covers` in links.sql says the same of
rows.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from .drafts import Draft


def covers(one: Draft, other: Draft, said_at: datetime | None) -> bool:
    """Whether a fact covers another one, which was said at that time if at any."""
    return (
        one.trust >= other.trust
        and one.source == other.source
        and other.actor in (None, one.actor)
        and other.run in (None, one.run)
        and said_at in (None, one.at)
        and (one.metadata == other.metadata or contains(json.loads(one.metadata), json.loads(other.metadata)))
    )


def contains(whole: Any, part: Any) -> bool:
    """Whether one object of JSON contains another one, as Postgres' `@>` has it."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and contains(whole[name], value) for name, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(contains(w, value) for w in whole) for value in part)
    return isinstance(whole, bool) == isinstance(part, bool) and bool(whole == part)
