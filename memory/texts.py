"""Values and the texts that are searched for them.

The law: a value is any JSON value and is kept as it was given. Its text is the value itself where it is a text; of
anything else it is a line for each leaf, `path: leaf`, in the order in which they stand (of `{"who": {"name": "Ann"},
"likes": ["tea"]}` the lines `who.name: Ann` and `likes: tea`). What Postgres cannot keep, NUL and lone surrogates, is
refused by name and never changed in silence.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..tasks.errors import EntryError, ValueTooLarge

INDEXED = 100_000  # characters of a text whose words are indexed: a tsvector takes 1 MB
CONTEXT = 1_000  # characters of an earlier entry that count as context of the next
QUERY = 4_000  # characters of a query

_SHORTER = "keep less of it, or where it is to be found, or raise TRELLIS_VALUE_MAX_BYTES"

_MARK = re.compile(r"^\s*(?:[-*•>]+|\d+[.)])\s+")  # what lists put before a line
_END = " .!"
_QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
# With them a model puts a sentence at a cosine of .9 to .97 from the same sentence (all-MiniLM-L6-v2).
_FILLERS = frozenset(("a", "actually", "also", "an", "indeed", "just", "really", "some", "that", "the"))
_LEAD = re.compile(
    r"""^(?:
        (?: as\ (?:i|you|we)\ (?:mentioned|noted|said) | by\ the\ way | fyi | it\ is\ (?:a\ fact|clear|known|true)
          | (?:i|we)\ (?:know|recall|remember) | (?:please\ )?(?:note|recall|remember) | so | well | yes )
        \b[\s,:;.-]* (?:that\b)? \s*
    )+""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"\d+")
_DENIAL = re.compile(r"\b(?:not?|never|none|nobody|nothing|without|cannot)\b|n['\u2019]t\b")


def name_of(field: str, name: object, most: int) -> str:
    """A name as it is: a text that is not empty, of `most` bytes at most. Raises EntryError."""
    if not isinstance(name, str):
        raise EntryError(field, f"needs a text, got {type(name).__name__}")
    if not name:
        raise EntryError(field, "is empty")
    size = len(storable(field, name).encode())
    if size > most:
        raise EntryError(field, f"is {size:,} bytes long, {most:,} are allowed")
    return name


def storable(field: str, text: str) -> str:
    """The text, if Postgres can keep it. Raises EntryError for NUL and for lone surrogates, with their place."""
    place = text.find("\0")
    if place >= 0:
        raise EntryError(field, f"has a NUL at position {place}, which Postgres cannot keep: remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EntryError(
            field,
            f"has a lone surrogate at position {error.start}: it was decoded wrongly; decode it as UTF-8",
        ) from None
    return text


def array_of(texts: Iterable[str]) -> str:
    """Texts as Postgres writes an array of them. psycopg takes twenty times as long, with each search."""
    escaped = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in escaped) + "}"


def json_of(field: str, value: object, most: int, remedy: str = _SHORTER) -> str:
    """The value as JSON, checked to its leaves.

    Raises EntryError, with the path of what JSON or Postgres cannot keep, and ValueTooLarge, with the remedy, above
    `most` bytes.
    """
    try:
        for path, leaf in _leaves(value, field):
            _checked(path, leaf)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise EntryError(field, "is nested too deeply, or contains itself") from None
    size = len(text.encode())
    if size > most:
        raise ValueTooLarge(field, size, most, remedy)
    return text


def _checked(path: str, leaf: object) -> None:
    if isinstance(leaf, str):
        storable(path, leaf)
    elif isinstance(leaf, float) and not math.isfinite(leaf):
        raise EntryError(path, f"is {leaf}, which JSON cannot say")
    elif not isinstance(leaf, bool | int | float | None):
        raise EntryError(path, f"is a {type(leaf).__name__}, and JSON has none")


def text_of(value: object) -> str:
    """What is searched for a value, by the rule above."""
    if isinstance(value, str):
        return value
    lines = []
    for path, leaf in _leaves(value, ""):
        if leaf is not None:
            shown = leaf if isinstance(leaf, str) else json.dumps(leaf)
            lines.append(f"{path}: {shown}" if path else shown)
    return "\n".join(lines)


def hash_of(text: str) -> bytes:
    """What two texts have in common that differ only in letter case, spaces, forms of the same letter, full stops and
    exclamation marks at their ends, and quotes around them.

    A question mark is another text. Embedding models do not see to it: with all-MiniLM-L6-v2 a sentence in quotes is
    at a cosine of .91 to .97 from the same without, and at .93 to .97 with two exclamation marks.
    """
    folded = " ".join(_folded(text).split())
    bare = folded.rstrip(_END)
    if len(bare) > 1 and bare[0] in _QUOTES and bare[-1] in _QUOTES:
        bare = bare[1:-1].rstrip(_END)
    return hashlib.sha256((bare or folded).encode()).digest()


def unlisted(text: str) -> str:
    """A line without what lists put before it."""
    return _MARK.sub("", text)


def line_hashes(text: str) -> list[bytes]:
    """The hashes of a text's lines, without what lists put before them."""
    lines = (unlisted(line).strip() for line in text.splitlines())
    return list(dict.fromkeys(hash_of(line) for line in lines if line))


def alike(one: str, other: str) -> bool:
    """Whether two texts that mean nearly the same to a model may count as one.

    They have the same numbers, both deny or neither, and they are not the same words in another order: to an embedding
    model "costs 10" and "costs 11", "Ann lent Bob the bike" and "Bob lent Ann the bike" are as near as two spellings of
    one fact.
    """
    first, second = gist(one), gist(other)
    return _told(one) == _told(other) and (first == second or sorted(first) != sorted(second))


def restated(one: str, other: str) -> bool:
    """Whether two texts are the same words in the same order, but for those that say nothing ("Note: …")."""
    first = gist(one)
    return bool(first) and first == gist(other)


def gist(text: str) -> list[str]:
    """The words of a text that say something, in their order."""
    said = _LEAD.sub("", _folded(text).strip())
    return [word for word in _WORD.findall(said) if word not in _FILLERS]


def _told(text: str) -> tuple[list[str], bool]:
    folded = _folded(text)
    return sorted(_NUMBER.findall(folded)), _DENIAL.search(folded) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def without(text: str, names: Sequence[str]) -> str:
    """A text without these names, or as it is where nothing would be left."""
    if not names:
        return text
    found = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    rest = re.sub(rf"\b(?:{found})\b(?:['\u2019]s\b)?", " ", text, flags=re.IGNORECASE)
    rest = re.sub(r"\s+([?!.,;:])", r"\1", " ".join(rest.split()))
    return rest if re.search(r"\w", rest) else text


def named(text: str, names: Sequence[str]) -> list[str]:
    """Those of the names that stand in a text as whole words, in any case."""
    return [name for name in names if re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE)]


def _leaves(value: object, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            if not isinstance(key, str):
                raise EntryError(path or "value", f"has the key {key!r}: keys of JSON are texts")
            yield from _leaves(
                below, f"{path}.{storable(path or 'value', key)}" if path else storable("value", key)
            )
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _leaves(below, path)
    else:
        yield path, value
