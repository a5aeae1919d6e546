"""Text that was recalled is not stored again as new.

The law: what comes back with the mark `source="recalled"`, or as a list of which every line is a memory in reach, says
nothing new, whichever memory it is given to. A single line is no list: of facts it is the same or a link, and in an
episode people say a thing twice. But a sentence that an agent or a tool says in an episode, and that stands in a memory
in the words of somebody else, or as a fact, comes from there. What it has said itself it may say again, and formulas
("thank you") are nobody's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from .drafts import Draft
from .texts import gist, hash_of, line_hashes, unlisted

LINES = 1_000  # lines of a text that are looked up
SENTENCE = 3  # words that say something, from which a line is more than a formula
ECHOING = ("agent", "tool")  # sources that are handed what was recalled
FACT = "fact"  # whose words a fact is, whatever its source

Known = Mapping[
    bytes, Collection[str]
]  # lines by their hash: the sources of entries, and whether they are facts


def lines_of(text: str) -> list[bytes]:
    """The hashes of the lines that have to be looked up: none of a text that is no list, or too long a one."""
    if "\n" not in text:
        return []
    found = line_hashes(text)
    return found if 1 < len(found) <= LINES else []


def recalled(lines: Sequence[bytes], known: Collection[bytes]) -> bool:
    """Whether a text with these lines says nothing but what is known."""
    return bool(lines) and all(line in known for line in lines)


def said(text: str, source: str) -> bytes | None:
    """The hash of a single line that may have been recalled by who says it in an episode."""
    line = unlisted(text.strip())
    if source not in ECHOING or "\n" in line or len(gist(line)) < SENTENCE:
        return None
    return hash_of(line)


def asked(drafts: Iterable[Draft]) -> list[bytes]:
    """The lines of some entries that have to be looked up."""
    lines: dict[bytes, None] = {}
    for each in drafts:
        line = said(each.text, each.source)
        lines.update(dict.fromkeys(lines_of(each.text) if line is None else [line]))
    return list(lines)


def kept(drafts: Sequence[Draft], known: Known) -> list[bool]:
    """Which of some entries, one after the other, are to be stored: what one adds, the next ones may have recalled."""
    there = {line: set(voices) for line, voices in known.items()}
    found = []
    for each in drafts:
        line = said(each.text, each.source)
        echo = line is not None and bool(there.get(line, set()) - {each.source})
        new = each.source != "recalled" and not echo and not recalled(lines_of(each.text), there)
        if new:
            there.setdefault(each.hash, set()).add(each.source)
        found.append(new)
    return found
