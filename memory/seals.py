"""What makes a change to the audit log evident: pure arithmetic over rows and seals.

The law: a seal covers a batch of rows in their order, and the seal before it. Each row has a digest of its own, so
that what was changed can be named; the seal's code binds the digests, the ids and the code of the seal before. All
of them are HMAC-SHA256 (RFC 2104) under a key that the database does not have: who can write every table, and not
read the key, cannot make a log that verifies. What nobody has sealed yet, and the newest seals cut off together with
their rows, only show against a seal number and code that were written down elsewhere.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import NamedTuple

DIGEST = 16  # bytes of a row's digest: 2^64 tries for two rows with the same one, with the key in hand
GENESIS = bytes(32)  # in the place of the code before the first seal


class Row(NamedTuple):
    """A row as it is sealed: its id, and the text that stands for all its columns."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Seal:
    """A batch of rows of one month, closed for ever."""

    seq: int
    month: date
    last_tx: str  # up to which place in the order (tx, id) it says what is there
    last_id: int
    ids: tuple[int, ...]
    digests: bytes
    previous: bytes
    key: str
    mac: bytes

    @property
    def head(self) -> str:
        """What to write down elsewhere: `NUMBER:CODE`."""
        return f"{self.seq}:{self.mac.hex()}"


class Retired(NamedTuple):
    """A month whose rows were detached, with the number of the last seal that covers some of them."""

    month: date
    rows: int
    last_seal: int
    key: str
    mac: bytes


class Kind(StrEnum):
    """What is wrong."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    SEAL = "seal"


class Finding(NamedTuple):
    """Something that was tampered with."""

    kind: Kind
    row: int | None  # the id of a row; None where a seal itself is wrong
    seal: int
    what: str


def digest(key: bytes, text: str) -> bytes:
    """The digest of a row."""
    return hmac.digest(key, b"row\0" + text.encode(), "sha256")[:DIGEST]


def seal(
    key_name: str,
    key: bytes,
    seq: int,
    month: date,
    rows: Sequence[Row],
    last: tuple[str, int],
    previous: bytes,
) -> Seal:
    """Close a batch: rows in order, at least one; last: the place up to which nothing else is there."""
    ids = tuple(row.id for row in rows)
    digests = b"".join(digest(key, row.text) for row in rows)
    unsigned = Seal(seq, month, *last, ids, digests, previous, key_name, b"")
    return replace(unsigned, mac=code(key, unsigned))


def code(key: bytes, of: Seal) -> bytes:
    """The code of a seal: over everything in it, and through `previous` over all seals before."""
    head = f"seal\0{of.seq}\0{of.month.isoformat()}\0{of.last_tx}\0{of.last_id}\0{of.key}\0{len(of.ids)}\0"
    ids = b"".join(each.to_bytes(8, "big") for each in of.ids)
    return hmac.digest(key, head.encode() + ids + of.digests + of.previous, "sha256")


def retire(key_name: str, key: bytes, month: date, rows: int, last_seal: int) -> Retired:
    """What says that the rows of a month are gone by right."""
    text = f"retired\0{month.isoformat()}\0{rows}\0{last_seal}\0{key_name}"
    return Retired(month, rows, last_seal, key_name, hmac.digest(key, text.encode(), "sha256"))


def check_retired(of: Retired, keys: Mapping[str, bytes]) -> Iterator[Finding]:
    """What is wrong with the word that a month was retired: whoever lacks the key cannot have given it."""
    key = keys.get(of.key)
    if key is None:
        what = f"was retired under key {of.key!r}, which TRELLIS_AUDIT_KEYS does not name"
    elif not hmac.compare_digest(retire(of.key, key, of.month, of.rows, of.last_seal).mac, of.mac):
        what = "was not retired by `trellis audit retire`: its code is not that of its content"
    else:
        return
    yield Finding(Kind.SEAL, None, of.last_seal, f"{of.month:%Y-%m} {what}")


def check_seal(of: Seal, after: Seal | None, keys: Mapping[str, bytes]) -> Iterator[Finding]:
    """What is wrong with a seal itself. after: the seal before it; keys: all that ever signed, by name."""
    expected = (after.seq + 1) if after is not None else 1
    if of.seq != expected:
        missing = f"{expected}" if of.seq == expected + 1 else f"{expected} to {of.seq - 1}"
        yield Finding(Kind.SEAL, None, of.seq, f"seal {missing} is missing before it")
    elif of.previous != (after.mac if after is not None else GENESIS):
        yield Finding(Kind.SEAL, None, of.seq, "does not continue the seal before it")
    key = keys.get(of.key)
    if key is None:
        what = f"was made with key {of.key!r}, which TRELLIS_AUDIT_KEYS does not name"
        yield Finding(Kind.SEAL, None, of.seq, what)
    elif not hmac.compare_digest(code(key, of), of.mac):
        yield Finding(Kind.SEAL, None, of.seq, "was changed: its code is not that of its content")


def check_rows(of: Seal, rows: Sequence[Row], key: bytes) -> Iterator[Finding]:
    """What is wrong with the rows of a seal; rows: what lies in its place now, in order."""
    marks = {each: of.digests[at * DIGEST : (at + 1) * DIGEST] for at, each in enumerate(of.ids)}
    present = {row.id for row in rows}
    for each in of.ids:
        if each not in present:
            yield Finding(Kind.REMOVED, each, of.seq, "was removed")
    now: dict[int, None] = {}
    for row in rows:
        mark = marks.get(row.id)
        if mark is None or row.id in now:
            yield Finding(Kind.INSERTED, row.id, of.seq, "was inserted after the seal was made")
            continue
        now[row.id] = None
        if not hmac.compare_digest(mark, digest(key, row.text)):
            yield Finding(Kind.CHANGED, row.id, of.seq, "was changed")
    was = [each for each in of.ids if each in present]
    for before, after in zip(was, now, strict=False):
        if before != after:
            yield Finding(Kind.REORDERED, after, of.seq, f"stands where row {before} stood")


def check_gone(of: Seal, rows: Sequence[Row]) -> Iterator[Finding]:
    """What is wrong with the place of a seal whose rows were detached; rows: what lies there now."""
    for row in rows:
        yield Finding(Kind.INSERTED, row.id, of.seq, f"was inserted into {of.month:%Y-%m}, which was retired")
