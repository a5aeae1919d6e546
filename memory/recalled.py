"""Text that was recalled is not stored again as new.

The law: what comes back with the mark `source="recalled"`, or as a list of which every line is a memory in reach, says
nothing new, whichever memory it is given to. A single line is no list: of facts it is the same or a link, and in an
episode people say a thing twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .drafts import Draft
from .texts import line_hashes

LINES = 1_000  # lines of a text that are looked up


def lines_of(text: str) -> list[bytes]:
    """The hashes of the lines that have to be looked up: none of a text that is no list, or too long a one."""
    if "\n" not in text:
        return []
    found = line_hashes(text)
    return found if 1 < len(found) <= LINES else []


def recalled(lines: Sequence[bytes], known: Collection[bytes]) -> bool:
    """Whether a text with these lines says nothing but what is known."""
    return bool(lines) and all(line in known for line in lines)


def kept(drafts: Sequence[Draft], known: Collection[bytes]) -> list[bool]:
    """Which of some texts, one after the other, are to be stored: what one adds, the next ones may have recalled."""
    there = set(known)
    found = []
    for each in drafts:
        new = each.source != "recalled" and not recalled(lines_of(each.text), there)
        if new:
            there.add(each.hash)
        found.append(new)
    return found
