"""When a run begins, and whether a new one does: delayed starts, debounce, singletons.

The law: every start gives back a run that will be run. It is a new one, or the one that stands: the open run
of the same singleton key, or the waiting run of the same debounce key, which then has the new parameters. Starts
under the same key take turns, so that of any number at once exactly one makes the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg.rows import tuple_row

from ..tasks.database import Connection, rows_of
from ..tasks.errors import DefinitionError
from ..tasks.hints import choices
from ..tasks.queries import load
from . import launch
from .engine import Engine
from .journal import Journal
from .launch import Prepared
from .tags import is_plain

SQL = load("trellis.workflows.sql", "beginnings.sql")
Seconds = float | timedelta

_BATCH = 5000  # steps in one statement
_LONGEST = 3_155_760_000.0  # seconds: a century


@dataclass(frozen=True, slots=True)
class Debounce:
    """Starts that follow one another within `wait` seconds come down to one run, with the parameters of the last.

    key: of starts that belong together, within one workflow.
    wait: seconds (or a timedelta) from the last start to the beginning of the run.
    max_wait: seconds from the first one after which it begins all the same; without it every start puts it off.

    Raises DefinitionError.
    """

    key: str
    wait: Seconds
    max_wait: Seconds | None = None

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        _plain("Debounce", self.key)
        wait = _seconds("Debounce: wait", self.wait)
        if self.max_wait is not None and _seconds("Debounce: max_wait", self.max_wait) < wait:
            raise DefinitionError(f"Debounce: max_wait {self.max_wait!r} is less than wait {self.wait!r}")


@dataclass(frozen=True, slots=True)
class Singleton:
    """At most one open run of the workflow has the key: a start gives that one back.

    key: of starts that want the same, within one workflow.
    window: seconds (or a timedelta) after its creation in which a run is given back although it is over.

    Raises DefinitionError.
    """

    key: str
    window: Seconds | None = None

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        _plain("Singleton", self.key)
        if self.window is not None:
            _seconds("Singleton: window", self.window)


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a start says about its beginning."""

    at: datetime | None
    delay: float
    debounce: Debounce | None
    singleton: Singleton | None

    @property
    def deferred(self) -> bool:
        """Whether the run begins later."""
        return self.at is not None or self.delay > 0 or self.debounce is not None


def beginning(
    workflow: str,
    *,
    key: str | None,
    at: datetime | None,
    delay: Seconds | None,
    debounce: Debounce | None,
    singleton: Singleton | str | None,
) -> Beginning | None:
    """What was asked for, checked; None where the run simply begins. Raises DefinitionError."""
    if at is None and delay is None and debounce is None and singleton is None:
        return None
    given = [
        name for name, value in (("at", at), ("delay", delay), ("debounce", debounce)) if value is not None
    ]
    if len(given) > 1:
        raise DefinitionError(
            f"{given[0]}= and {given[1]}= both say when the run begins: give one", workflow=workflow
        )
    named = [
        name
        for name, value in (("key", key), ("debounce", debounce), ("singleton", singleton))
        if value is not None
    ]
    if len(named) > 1:
        raise DefinitionError(
            f"{named[0]}= and {named[1]}= both say which earlier run is given back: give one",
            workflow=workflow,
        )
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise DefinitionError(f"at={at!r} is not a datetime with a time zone", workflow=workflow)
    if debounce is not None and not isinstance(debounce, Debounce):
        raise DefinitionError(f"debounce={debounce!r} is not a Debounce(key, wait=…)", workflow=workflow)
    if singleton is not None and not isinstance(singleton, Singleton):
        singleton = Singleton(singleton)
    wait = 0.0 if delay is None else _seconds("delay", delay)
    return Beginning(None if at is None else at.astimezone(UTC), wait, debounce, singleton)


_OF_MESSAGES = ("tags", "correlation_id", "tenant", "deadline", "delay", "at", "debounce", "singleton")


def of_message(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a start as a message has them, in JSON, as `Client.start` takes them. Raises DefinitionError."""
    found = {name: value for name, value in options.items() if value is not None}
    for name in found:
        if name not in _OF_MESSAGES:
            raise DefinitionError(f"there is no option {name!r}{choices(name, _OF_MESSAGES, 'there are')}")
    if isinstance(found.get("at"), str):
        try:
            found["at"] = datetime.fromisoformat(found["at"])
        except ValueError:
            raise DefinitionError(
                f"at={found['at']!r} is no moment in ISO 8601, such as '2026-01-31T08:00:00+01:00'"
            ) from None
    for name, kind in (("debounce", Debounce), ("singleton", Singleton)):
        if isinstance(found.get(name), Mapping):
            try:
                found[name] = kind(**found[name])
            except TypeError:
                fields = ", ".join(each.name for each in dataclass_fields(kind))
                raise DefinitionError(f"{name}={found[name]!r} is not an object with {fields}") from None
    return found


def write(
    journal: Journal, connection: Connection, prepared: Prepared, begins: Beginning | None, *, sent: bool
) -> str | None:
    """Insert the run, or find the one that stands, inside the caller's transaction; answers with its id.

    None: the run has the key that was given, and `Journal.read` finds it by that.
    """
    if begins is None:
        launch.write(journal, connection, prepared, sent=sent)
        return None
    if begins.debounce is not None:
        return _debounced(journal, connection, prepared, begins.debounce)
    single = begins.singleton
    if single is not None:
        standing = _standing(connection, prepared.workflow, single)
        if standing is not None:
            return standing
        prepared = _named(prepared, f"singleton:{single.key}")
    if not launch.write(journal, connection, prepared, sent=sent and not begins.deferred):
        return None if prepared.row["key"] is not None else prepared.run
    if begins.deferred:
        _ask(connection, "defer", run=prepared.run, at=begins.at, delay=begins.delay)
    return None if prepared.row["key"] is not None else prepared.run


def begin(engine: Engine) -> int:
    """Let steps whose run begins now wait for the limit in front of them; answers with how many."""
    with engine.database.connection() as connection:
        return len(_ask(connection, "begin", limit=_BATCH))


def _standing(connection: Connection, workflow: str, single: Singleton) -> str | None:
    name = f"singleton:{single.key}"
    _ask(connection, "turn", workflow=workflow, single=name)
    found = _ask(connection, "standing", workflow=workflow, single=name)
    if not found and single.window is not None:
        window = _seconds("window", single.window)
        found = _ask(connection, "recent", workflow=workflow, single=name, window=window)
    return str(found[0][0]) if found else None


def _debounced(journal: Journal, connection: Connection, prepared: Prepared, debounce: Debounce) -> str:
    name = f"debounce:{debounce.key}"
    wait = _seconds("wait", debounce.wait)
    _ask(connection, "turn", workflow=prepared.workflow, single=name)
    found = _ask(connection, "standing", workflow=prepared.workflow, single=name)
    until = None
    if found and not found[0][1]:
        standing, _, created = found[0]
        prepared = prepared._replace(run=str(standing))
        journal.define(connection, prepared.definition)
        _ask(connection, "clear", run=standing)
        _ask(connection, "replace", **{**prepared.row, "run": standing, "definition": prepared.definition[0]})
        journal.add(connection, prepared.run, prepared.plan.steps, sent=False)
        _ask(connection, "tell", run=standing)
        if debounce.max_wait is not None:
            now = _ask(connection, "now")[0][0]
            last = created + timedelta(seconds=_seconds("max_wait", debounce.max_wait))
            until = min(last, now + timedelta(seconds=wait))
    else:
        if found:
            _ask(connection, "give_up", run=found[0][0])
        prepared = _named(prepared, name)
        launch.write(journal, connection, prepared, sent=False)
    _ask(connection, "defer", run=prepared.run, at=until, delay=wait)
    return prepared.run


def _named(prepared: Prepared, single: str) -> Prepared:
    return prepared._replace(row={**prepared.row, "single": single})


def _plain(what: str, key: Any) -> None:
    if not isinstance(key, str) or not is_plain(key):
        raise DefinitionError(f"{what}: its key {key!r} is not a text of 1 to 500 characters, without NUL")


def _seconds(what: str, value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not number or not 0 <= seconds <= _LONGEST:
        raise DefinitionError(f"{what} {value!r} is not a timedelta or a number of seconds from 0 on")
    return float(seconds)


def _ask(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    cursor = connection.cursor(row_factory=tuple_row).execute(SQL[block], arguments)
    return rows_of(cursor)
