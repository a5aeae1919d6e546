"""The kill points, set into a worker from outside: TRELLIS_IMPORTS names this module.

The law: the engine's methods are wrapped, never changed, and the product has no line for it. A point lies before or
after a whole statement, or inside a transaction between two of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import fsspec
import psycopg

from trellis.tasks.database import Database
from trellis.workflows import journal, schedules
from trellis.workflows.appending import Appending
from trellis.workflows.joint import Joint
from trellis.workflows.journal import Journal

from . import trigger
from .disk import FullDisk
from .harm import FAULTS
from .trigger import Arm, passed

READS = {"results", "names", "gather", "params", "durations", "ready_queues", "read_run", "read_signals"}


class _Lie(threading.local):
    """The statement that this thread ran last, and whether the next commit is to be reported as lost."""

    block = ""
    armed = False


_lie = _Lie()


def _lie_told(connection: Any) -> None:
    """What was committed on it is to look like a broken connection."""
    _lie.armed = False
    connection.close()
    raise psycopg.OperationalError("chaos: the connection broke after the commit")


def wrap(
    owner: Any, name: str, before: str = "", after: str = "", when: Callable[[Any], bool] = bool
) -> None:
    """Let a method pass a point when it is called, and another when it has answered (with something)."""
    method = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            passed(before)
        answer = method(*args, **kwargs)
        if after and when(answer):
            passed(after)
        return answer

    setattr(owner, name, wrapped)


def install() -> None:
    """Set all points into this process and those that it will fork."""
    for name in ("claim", "claim_ranked"):
        wrap(Journal, name, before="before claim", after="after claim", when=lambda answer: bool(answer[0]))
    wrap(
        Journal,
        "complete",
        before="before completion commit",
        after="after completion commit",
        when=lambda answer: bool(answer.won),
    )
    for name in ("take_ready", "take_due", "take_expired"):
        wrap(Journal, name, after="inside tick")
    wrap(Journal, "intend", before="before the intent", after="after the intent")
    wrap(Journal, "park", before="before parking", after="after parking")
    wrap(
        Journal, "decide", before="before parking", after="after parking", when=lambda answer: answer is None
    )
    wrap(Journal, "widen", after="inside map expansion", when=lambda _: True)
    wrap(schedules, "_handle", after="inside a schedule's tick")
    wrap(Appending, "insert", after="inside append", when=lambda _: True)
    _install_joint()
    _install_lie()
    trigger.learn({**FAULTS, "commit unheard": _tell_a_lie})
    fsspec.register_implementation("chaosdisk", FullDisk, clobber=True)


class _Committing(AbstractContextManager[Any]):
    """The transaction of a joint that is about to end, with the moment between its last statement and its COMMIT."""

    def __init__(self, transaction: AbstractContextManager[Any], connection: Any) -> None:
        self._transaction = transaction
        self._connection = connection

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is not None:
            return self._transaction.__exit__(*error)
        passed("before a joint commit")
        self._transaction.__exit__(None, None, None)
        if _lie.armed:
            _lie_told(self._connection)
        return None


def _install_joint() -> None:
    """The completion that a body's own transaction commits: no method of the journal ends it."""
    commit, abandon = Joint.commit, Joint.abandon

    def committing(self: Any, last: Any) -> Any:
        self._transaction = _Committing(self._transaction, self._connection)
        answer = commit(self, last)
        if answer is not None:
            passed("after a joint commit")
        return answer

    def abandoned(self: Any) -> None:
        # A connection that is given back has nothing left to commit, and what it raises nobody hears.
        armed, _lie.armed = _lie.armed, False
        try:
            abandon(self)
        finally:
            _lie.armed = armed

    Joint.commit = committing
    Joint.abandon = abandoned


def _tell_a_lie(arm: Arm) -> None:
    _lie.armed = True


def _install_lie() -> None:
    """Make the next commit of a thread that is to be lied to look like a broken connection."""
    ask, connection_of = journal._ask, Database.connection

    def ask_and_note(connection: Any, block: str, **arguments: Any) -> Any:
        found = ask(connection, block, **arguments)
        _lie.block = block
        return found

    @contextmanager
    def connection(self: Database) -> Iterator[Any]:
        _lie.block = ""
        with connection_of(self) as borrowed:
            yield borrowed
            if _lie.armed and _lie.block and _lie.block not in READS:
                _lie_told(borrowed)

    journal._ask = ask_and_note
    Database.connection = connection


if os.environ.get("CHAOS_FOLDER"):
    install()
