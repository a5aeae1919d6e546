"""Words for refusals: the closest name to a mistyped one.

The law: a message that refuses a name offers the names that would have been taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 12


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that is like a mistyped one; None where none is."""
    return next(iter(get_close_matches(name, list(names), n=1)), None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a name is close, nothing otherwise."""
    close = closest(name, names)
    return f"; did you mean {close!r}?" if close is not None else ""


def listed(names: Iterable[str], nothing: str = "none") -> str:
    """The names, comma-separated, cut after a dozen."""
    every = list(names)
    if not every:
        return nothing
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(map(repr, every[:LISTED])) + more


def choices(name: str, names: Iterable[str], kind: str) -> str:
    """What follows a refused name: the closest one, or else all that exist."""
    every = list(names)
    return did_you_mean(name, every) or f"; {kind}: {listed(every)}"
