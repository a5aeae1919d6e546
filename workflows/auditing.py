"""The engine's part in the audit log: what triggers cannot see, and what the tick does for it.

The law: what changes a table is written by that table's triggers, in the same transaction. Here is the rest: what was
refused and so changed nothing, written in a transaction of its own; and the settings with which a worker begins. Rows
are closed where a key is set. Each hour the partitions of the months to come are made, and the newest seal is told to
the process's own log: who keeps that elsewhere can show what was cut off at the end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr
from pydantic_core import to_jsonable_python
from sqlalchemy import select

from ..memory.actions import AuditAction, Outcome
from ..memory.audit import AuditLog, Entry, record
from ..memory.history import Filter, History
from ..tasks.database import Database
from ..tasks.logs import get_logger
from ..tasks.redaction import redact
from ..tasks.settings import Settings
from .queries import as_uuid
from .tables import RunRow

EVERY = 5.0  # seconds between two looks of a process at what can be sealed
BATCHES = (
    20  # of a thousand rows in one look, half a second: the tick has more to do, and the next look goes on
)
SELDOM = 3600.0  # seconds between two looks at the calendar, and between two heads

log = get_logger("trellis.audit")


class Sealing:
    """A process's part in the sealing of a database's log."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._log = AuditLog(database, settings.sealing_keys())
        self._keyed = settings.audit_keys is not None
        self._next = self._seldom = float("-inf")

    def look(self) -> int:
        """Seal what can be sealed, if it is time; answers with the rows."""
        now = time.monotonic()
        if now < self._next:
            return 0
        self._next = now + EVERY
        seldom = now >= self._seldom
        if seldom:
            self._seldom = now + SELDOM
            self._log.ahead()
        if not self._keyed:
            return 0
        sealed = self._log.seal(BATCHES)
        if seldom:
            log.info("audit.head", head=self._log.head())
        return sealed


def refused(database: Database, run: str, step: str, by: str, tried: str, who: Sequence[str]) -> None:
    """Note that somebody tried what only others may do to a step. who: those who may."""
    found = database.read(select(RunRow.tenant, RunRow.correlation_id).where(RunRow.id == as_uuid(run)))
    tenant, correlation = found[0] if found else (None, None)
    entry = Entry(
        AuditAction.ACCESS_REFUSED, f"step:{run}/{step}", Outcome.REFUSED, by, tenant, correlation, run,
        {"tried": tried, "may": list(who), "via": database.actor},
    )  # fmt: skip
    _write(database, entry)


def begins(database: Database, settings: Settings, role: str) -> bool:
    """Note the settings of a process that begins, if they are others than the last ones of its role.

    Answers with whether they are. Of secrets there is nothing to see but the names of keys.
    """
    target = f"settings:{role}"
    now = _shown(settings)
    rows = History(database).rows(Filter(action=AuditAction.SETTING_CHANGED, target=target), limit=1)
    before: dict[str, Any] = (rows[0].detail or {}).get("settings", {}) if rows else {}
    if rows and before == now:
        return False
    changed = {
        name: {"was": before.get(name), "is": now.get(name)}
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    }
    detail = {"changed": changed if rows else None, "settings": now}
    _write(database, Entry(AuditAction.SETTING_CHANGED, target, detail=detail))
    return True


def _shown(settings: Settings) -> dict[str, Any]:
    """What is set otherwise than by default, but for who acts, which each row says."""
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if name == "actor" or value == field.default:
            continue
        if not isinstance(value, SecretStr):
            found[name] = redact(to_jsonable_python(value), name)
    if settings.audit_keys is not None:
        found["sealing_with"] = list(settings.sealing_keys())  # names: not what they open
    if settings.secret_keys is not None:
        found["encrypting_with"] = list(settings.encrypting_keys())
    return found


def _write(database: Database, entry: Entry) -> None:
    def once() -> None:
        with database.connection() as connection:
            record(connection, entry)

    database.again(once)
