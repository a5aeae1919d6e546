"""One memory as a record of a file: what it may say, and what is wrong with one that cannot be taken.

The law: a record is taken as it is or refused with the name of its field; nothing in it is mended in silence. What it
says is checked by the rules of `store` (drafts.py). What `document` writes, `parse` reads back as the same memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from ..tasks.errors import EntryError, ValueTooLarge
from ..tasks.hints import closest
from .drafts import Draft, draft
from .entries import Entry
from .halves import Vectors
from .scope import NAME_BYTES
from .texts import name_of, text_of

FIELDS = (
    "key", "value", "text", "kind", "metadata", "importance", "source", "trust", "actor", "episode", "seq", "at",
    "valid_from", "valid_to", "expires_at", "run_id", "step", "linked", "model", "embedding",
)  # fmt: skip
SOURCES = ("user", "tool", "web", "agent")

Wrong = EntryError | ValueTooLarge  # what a record is refused with

_ROUNDED = (
    0.001  # what 16 bits a number make of a length of 1; such a vector comes back as it was, to the last bit
)
_KINDS = ("fact", "episode")
_SHOWN = (
    "importance", "source", "trust", "actor", "episode", "seq", "at", "valid_from", "valid_to", "expires_at", "run_id",
    "step",
)  # fmt: skip
_OPTIONS = ("importance", "metadata", "source", "trust", "actor", "step", "text")
_BIGGEST = 2**63 - 1


class Target(NamedTuple):
    """Where records go: the model whose vectors they need, and the bytes that a value may take."""

    model: str
    dims: int
    most: int


@dataclass(slots=True)
class Record:
    """A memory on its way in. `linked`: the key that says the same, and is found in its place."""

    draft: Draft
    kind: str
    episode: str | None
    seq: int | None
    valid_from: datetime | None
    valid_to: datetime | None
    expires_at: datetime | None
    linked: str | None
    vector: Vectors | None  # of length 1, by the target's model; None: its text has to be embedded


def parse(data: Any, target: Target, line: int = 0) -> Record:
    """A record of plain data, of a line of a file. Raises EntryError or ValueTooLarge for what cannot be taken."""
    if not isinstance(data, Mapping):
        raise EntryError("record", f"is {_shown(data)}: needs an object with a value")
    given = {name: value for name, value in data.items() if value is not None or name == "value"}
    for name in given:
        if name not in FIELDS:
            raise EntryError(str(name), _unknown(str(name)))
    if "value" not in given:
        raise EntryError("value", "is missing")
    source = given.get("source", "user")
    if source not in SOURCES:
        raise EntryError("source", f"is {_shown(source)}: needs one of {', '.join(SOURCES)}")
    if not isinstance(given.get("metadata", {}), Mapping):
        raise EntryError("metadata", f"is {_shown(given['metadata'])}: needs an object")
    kind, episode, seq = _place(given)
    options = {name: given[name] for name in _OPTIONS if name in given}
    checked = draft(
        given.get("key", "-"),
        given["value"],
        target.most,
        None,
        {**options, "run": given.get("run_id"), "at": _moment(given, "at")},  # type: ignore[typeddict-item]  # `draft` looks
    )
    if "key" not in given:
        known = "seq" if seq is not None else "at" if "at" in given else None
        checked = _keyed(checked, episode, f"line {line}" if known is None else f"{known} {given[known]}")
    return Record(
        checked,
        kind,
        episode,
        seq,
        _moment(given, "valid_from"),
        _moment(given, "valid_to"),
        _moment(given, "expires_at"),
        name_of("linked", given["linked"], NAME_BYTES) if kind == "fact" and "linked" in given else None,
        _vector(given, target),
    )


def document(entry: Entry, linked: str | None, model: str | None, vector: Any = None) -> dict[str, Any]:
    """An entry as a record, without what goes without saying; times are datetimes."""
    found: dict[str, Any] = {"key": entry.key, "value": entry.value}
    if entry.text != text_of(entry.value):
        found["text"] = entry.text
    found["kind"] = entry.kind
    if entry.metadata:
        found["metadata"] = entry.metadata
    for name in _SHOWN:
        value = getattr(entry, name)
        if value is not None:
            found[name] = value
    if linked is not None:
        found["linked"] = linked
    if vector is not None:
        found |= {"model": model, "embedding": vector}
    return found


# --- fields


def _place(given: Mapping[str, Any]) -> tuple[str, str | None, int | None]:
    """Its kind, and its place in an episode."""
    kind = given.get("kind", "episode" if "episode" in given else "fact")
    if kind not in _KINDS:
        raise EntryError("kind", f"is {_shown(kind)}: needs one of {', '.join(_KINDS)}")
    if kind == "fact":
        for name in ("episode", "seq"):
            if name in given:
                raise EntryError(name, "belongs to records of the kind 'episode'")
        return kind, None, None
    if "episode" not in given:
        raise EntryError("episode", "is missing: a record of this kind belongs to one")
    seq = given.get("seq")
    if seq is not None and (isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq <= _BIGGEST):
        raise EntryError("seq", f"is {_shown(seq)}: needs a whole number, 0 or more")
    return kind, name_of("episode", given["episode"], NAME_BYTES), seq


def _keyed(checked: Draft, episode: str | None, place: str) -> Draft:
    """With a key that the same content has in every import; of an entry, the same content at the same place."""
    key = checked.hash.hex()[:32]
    if episode is not None:
        where = hashlib.sha256(f"{episode}\n{place}".encode()).hexdigest()[:16]
        key = f"{where}-{key[:16]}"
    return replace(checked, key=key)


def _moment(given: Mapping[str, Any], name: str) -> datetime | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise EntryError(name, f"is {_shown(value)}: needs a time in ISO 8601") from None
    if not isinstance(value, datetime):
        raise EntryError(name, f"is {_shown(value)}: needs a time in ISO 8601")
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _vector(given: Mapping[str, Any], target: Target) -> Vectors | None:
    """What was given, at length 1. A vector of another model is none: its text is embedded by this one."""
    value = given.get("embedding")
    if value is None or given.get("model", target.model) != target.model:
        return None
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise EntryError("embedding", f"is {_shown(value)}: needs a list of numbers") from None
    if found.shape != (target.dims,):
        size = found.shape[0] if found.ndim == 1 else f"a shape of {found.shape}"
        raise EntryError("embedding", f"has {size} numbers, the model {target.model!r} makes {target.dims}")
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.sqrt(found @ found))
    if not 0 < length < float("inf"):
        raise EntryError("embedding", "has no direction: it is zero, or has a number that is not finite")
    if abs(length - 1) > _ROUNDED:
        found = found / length
    unit: Vectors = found.astype(np.float32)
    return unit


def _unknown(name: str) -> str:
    close = closest(name, FIELDS)
    if close is not None:
        return f"is no field of a record; did you mean {close!r}?"
    return f"is no field of a record; there are: {', '.join(FIELDS)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
