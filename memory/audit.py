"""The audit log: who did what, on what, when, with which outcome; written with what it records, then sealed.

The law: a row is written in the transaction of what it records, so either both are there or neither is. Nothing
changes a row afterwards: the database refuses it, and `verify` names what somebody did past the database. Sealing
takes no lock that a writer would wait for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg.errors import LockNotAvailable
from pydantic_core import to_json

from ..tasks.database import Connection, Database
from ..tasks.errors import ConfigurationError, StateError
from ..tasks.redaction import redact
from .actions import AuditAction, Outcome
from .seals import GENESIS, Row, retire, seal
from .verifying import FIRST, SQL, Verification, Verified, ask

BATCH = 1000  # rows of one seal
_NEVER = 2**63 - 1  # an id that no row has


@dataclass(frozen=True, slots=True)
class Entry:
    """One row to be written; its time and its place in the order are the database's."""

    action: AuditAction
    target: str | None = None  # what it was done to: run:ID, schedule:NAME, …
    outcome: Outcome = Outcome.DONE
    actor: str | None = None  # TRELLIS_ACTOR where nobody is named
    tenant: str | None = None
    correlation_id: str | None = None
    run_id: str | None = None
    detail: Mapping[str, Any] | None = None  # any JSON; secrets are taken out

    def values(self) -> dict[str, Any]:
        """As the statement takes it. Raises ValueError for a detail that is no JSON."""
        detail = None
        if self.detail is not None:
            detail = to_json(_kept(redact(dict(self.detail))), inf_nan_mode="null").decode()
        return {
            "actor": _kept(redact(self.actor)),
            "tenant": _kept(self.tenant),
            "action": self.action.value,
            "target": _kept(redact(self.target)),
            "outcome": self.outcome.value,
            "correlation_id": _kept(self.correlation_id),
            "run_id": self.run_id,
            "detail": detail,
        }


def record(connection: Connection, *entries: Entry) -> None:
    """Write rows in the caller's transaction."""
    cursor = connection.cursor()
    for entry in entries:
        cursor.execute(SQL["record"], entry.values())


class AuditLog:
    """The log of one database, with the keys that seal it."""

    def __init__(self, database: Database, keys: Mapping[str, bytes]) -> None:
        """keys: by name; the first one seals, all of them verify."""
        self._database = database
        self._keys = dict(keys)

    # --- sealing

    def seal(self, batches: int = 100) -> int:
        """Close what no row can come in front of any more, so many batches at most; answers with the rows.

        Raises ConfigurationError without a key, StateError in a database that was restored into another cluster.
        """
        if not self._keys:
            raise ConfigurationError(_NO_KEY)
        sealed = 0
        for _ in range(batches):
            count = self._database.again(self._seal_one)
            sealed += count
            if count < BATCH:
                break
        return sealed

    def _seal_one(self) -> int:
        with self._database.transaction() as connection:
            [(ours,)] = ask(connection, "turn")
            if not ours:
                return 0
            [(seq, mac, tx, id_, over)] = ask(connection, "last_seal") or [(0, GENESIS, *FIRST, True)]
            if not over:
                raise StateError(_ELSEWHERE)
            found = ask(connection, "unsealed", tx=tx, id=id_, room=BATCH)
            name, key = next(iter(self._keys.items()))
            left = len(found)
            for month, group in itertools.groupby(found, key=lambda row: row[2]):
                rows = list(group)
                left -= len(rows)
                # The last seal of all that there is also closes what nobody has used: a row that appears there later
                # was inserted.
                ends = not left and len(found) < BATCH
                last = (rows[-1][4], _NEVER) if ends else (rows[-1][0], rows[-1][1])
                seq += 1
                made = seal(name, key, seq, month, [Row(row[1], row[3]) for row in rows], last, mac)
                mac = made.mac
                ask(
                    connection, "seal", seq=seq, month=month, last_tx=made.last_tx, last_id=made.last_id,
                    ids=list(made.ids), digests=made.digests, previous=made.previous, key=name, mac=mac,
                )  # fmt: skip
            return len(found)

    def rebase(self, actor: str | None = None) -> bool:
        """Let new rows come after all that are there, in a database that was restored into another cluster.

        There transactions are counted from a lower number. False where nothing had to be done.
        """
        with self._database.transaction() as connection:
            [(shift,)] = ask(connection, "rebase")
            if shift:
                detail = {"shift": int(shift)}
                record(connection, Entry(AuditAction.AUDIT_REBASED, "audit_log", actor=actor, detail=detail))
            return bool(shift)

    # --- verifying

    def verify(self, head: str | None = None) -> Verified:
        """Check every seal and every sealed row, a batch at a time.

        head: a `NUMBER:CODE` that was kept elsewhere; without it, seals cut off at the end do not show.

        Raises ConfigurationError where there are seals and no key.
        """
        with self._database.connection() as connection:
            if not self._keys and ask(connection, "last_seal"):
                raise ConfigurationError(_NO_KEY)
            ask(connection, "reading")
            try:
                return Verification(connection, self._keys).run(head)
            finally:
                if not connection.broken:
                    ask(connection, "read")

    def head(self) -> str | None:
        """`NUMBER:CODE` of the newest seal, to be kept elsewhere; None where nothing is sealed."""
        with self._database.connection() as connection:
            found = ask(connection, "last_seal")
        return f"{found[0][0]}:{found[0][1].hex()}" if found else None

    # --- partitions

    def ahead(self) -> int:
        """Make the partitions of this month and the next three; answers with how many were missing.

        Where somebody reads the log for long, it is done another time.
        """
        try:
            with self._database.transaction() as connection:
                return sum(made for (made,) in ask(connection, "ahead"))
        except LockNotAvailable:
            return 0

    def months(self) -> list[date]:
        """The months that have a partition, the oldest first."""
        with self._database.connection() as connection:
            return [month for month, _ in ask(connection, "months")]

    def retire(self, month: date, actor: str | None = None) -> str:
        """Detach a month whose rows are all sealed; answers with the name of the table that holds them now.

        Raises StateError where the month is not over, has no partition, or has rows that are not sealed or sound, and
        where somebody reads the log for long; ConfigurationError without a key.
        """
        if not self._keys:
            raise ConfigurationError(_NO_KEY)
        month = month.replace(day=1)
        try:
            with self._database.transaction() as connection:
                return self._retire(connection, month, actor)
        except LockNotAvailable as error:
            raise StateError("somebody reads the audit log for long, so nothing is detached now") from error

    def _retire(self, connection: Connection, month: date, actor: str | None) -> str:
        [(alone,)] = ask(connection, "nobody_reads")
        if not alone:
            raise StateError("the audit log is being verified: try again when that is over")
        over = dict(ask(connection, "months"))
        if month not in over:
            raise StateError(f"the audit log has no partition for {month:%Y-%m}")
        if not over[month]:
            raise StateError(f"{month:%Y-%m} is not over, so rows may still come")
        found = Verification(connection, self._keys).run(None)
        if not found.sound:
            raise StateError(f"the log does not verify, so nothing is detached: {found.findings[0].what}")
        [(count, last)] = ask(connection, "sealed_of", month=month)
        [(held,)] = ask(connection, "detach", month=month, rows=count)
        if held != count:
            raise StateError(
                f"{held - count:,} rows of {month:%Y-%m} are not sealed yet" if held > count
                else f"{count - held:,} rows of {month:%Y-%m} lie in audit_log_rest, since no partition was there"
            )  # fmt: skip
        name, key = next(iter(self._keys.items()))
        ask(connection, "retire", **retire(name, key, month, count, last)._asdict())
        table = f"audit_log_{month:%Y_%m}"
        detail = {"rows": count, "last_seal": last}
        record(connection, Entry(AuditAction.AUDIT_RETIRED, table, actor=actor, detail=detail))
        return table


_NO_KEY = (
    "TRELLIS_AUDIT_KEYS is not set, so the audit log can be neither sealed nor verified: set it as the workers have "
    'it; a new one is NAME:SECRET, for example "2026:" and the output of `openssl rand -hex 32`'
)


_ELSEWHERE = (
    "the last seal of the audit log is of a transaction that this database has not come to yet: it was restored into "
    "another cluster; run `trellis audit rebase` once, before anything else writes to it"
)


def _kept(value: Any) -> Any:
    """JSON with texts that Postgres keeps."""
    if isinstance(value, str):
        return value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_kept(str(key)): _kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    return value
