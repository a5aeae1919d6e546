"""Is the audit log as it was sealed? One seal after the other, each with the rows that lie in its place.

The law: reads only, and in bounded memory: of what was tampered with, the first thousand findings are named, and all
are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.rows import tuple_row

from ..tasks.database import Connection, rows_of
from ..tasks.queries import load
from .seals import Finding, Kind, Retired, Row, Seal, check_gone, check_retired, check_rows, check_seal

SQL = load("trellis.memory.sql", "audit.sql")

MOST = 1000  # findings that are named
FIRST = ("0", 0)  # a place in the order (tx, id) before every row
_SEALS = 20  # in one read
_STRANGERS = 10_000  # rows of one seal's place beyond its own, that are read


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found."""

    rows: int  # that are sealed and there
    seals: int
    unsealed: int  # rows behind the last seal
    findings: tuple[Finding, ...]  # the first thousand
    found: int  # how many there are
    head: str | None  # `NUMBER:CODE` of the newest seal, to be kept elsewhere

    @property
    def sound(self) -> bool:
        """Whether nothing was tampered with."""
        return not self.found


class Verification:
    """One reading of the whole log. Its connection is in autocommit mode: a long snapshot would hold vacuum up."""

    def __init__(self, connection: Connection, keys: Mapping[str, bytes]) -> None:
        self._connection = connection
        self._keys = keys
        self._findings: list[Finding] = []
        self._found = 0

    def run(self, head: str | None) -> Verified:
        """Read it. head: a `NUMBER:CODE` that was kept elsewhere, or None."""
        gone = dict(self._retired())
        rows = seals = 0
        before: Seal | None = None
        for one in self._seals():
            self._add(check_seal(one, before, self._keys))
            if head is not None and one.head == head:
                head = None
            rows += self._check(one, before, gone=one.seq <= gone.get(one.month, 0))
            before, seals = one, seals + 1
        if head is not None:
            self._add([Finding(Kind.SEAL, None, seals, f"{head} was the head once, and is not there")])
        place = (before.last_tx, before.last_id) if before is not None else FIRST
        [(unsealed,)] = ask(self._connection, "after", tx=place[0], id=place[1])
        findings = self._moved()
        return Verified(rows, seals, unsealed, findings, self._found, before.head if before else None)

    def _add(self, findings: Iterable[Finding]) -> None:
        for each in findings:
            self._found += 1
            if len(self._findings) < MOST:
                self._findings.append(each)

    def _retired(self) -> Iterator[tuple[Any, int]]:
        """The months that were retired by right, with the last of their seals."""
        for row in ask(self._connection, "retired"):
            one = Retired(*row)
            wrong = list(check_retired(one, self._keys))
            self._add(wrong)
            if not wrong:
                yield one.month, one.last_seal

    def _seals(self) -> Iterator[Seal]:
        seq = 0
        while found := ask(self._connection, "seals", seq=seq, room=_SEALS):
            for row in found:
                seq, month, tx, last, ids, digests, previous, key, mac = row
                yield Seal(seq, month, tx, last, tuple(ids), digests, previous, key, mac)

    def _check(self, one: Seal, before: Seal | None, *, gone: bool) -> int:
        """The rows in the place of a seal; answers with how many there are."""
        key = self._keys.get(one.key)
        if key is None:
            return 0
        after = (before.last_tx, before.last_id) if before is not None else FIRST
        found = ask(
            self._connection, "between", after_tx=after[0], after_id=after[1], last_tx=one.last_tx,
            last_id=one.last_id, room=len(one.ids) + _STRANGERS,
        )  # fmt: skip
        rows = [Row(*row) for row in found]
        self._add(check_gone(one, rows) if gone else check_rows(one, rows, key))
        return len(rows)

    def _moved(self) -> tuple[Finding, ...]:
        """The findings; rows that are missing in their place and lie in another one were moved."""
        missing = [each.row for each in self._findings if each.kind is Kind.REMOVED]
        if not missing:
            return tuple(self._findings)
        there = {id_ for (id_,) in ask(self._connection, "elsewhere", ids=missing)}
        return tuple(
            Finding(Kind.REORDERED, each.row, each.seal, "was moved to another place")
            if each.kind is Kind.REMOVED and each.row in there
            else each
            for each in self._findings
        )


def ask(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    """The rows of a statement of audit.sql."""
    cursor = connection.cursor(row_factory=tuple_row).execute(SQL[block], arguments)
    return rows_of(cursor)
