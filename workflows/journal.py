"""The journal: one method for each of the engine's statements, nothing else talks to its hot tables.

The law: a method is one statement or one transaction. It either did what it says or left no trace, and
may be called again: a deadlock or a broken connection is retried, since every write is fenced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast
from uuid import uuid4

from psycopg import Cursor, RawCursor
from psycopg.rows import tuple_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import JsonbLoader

from ..tasks.database import Connection, Database, rows_of
from ..tasks.queries import load, numbered
from ..tasks.settings import Settings
from . import wire
from .growing import Growing, not_ours
from .plan import PlannedStep
from .ranks import CROWD, SHORT_SECONDS
from .records import Claimed, Completed, Ending, Expired, Json, Outcome, Parked, Ready, Run, Signal, Told
from .states import RUN_ENDS, RunState

SQL = load("trellis.workflows.sql", "journal.sql")
_NUMBERED = {name: numbered(text) for name, text in SQL.items()}


class Ahead(NamedTuple):
    """What a worker would run at once if it were freed: actions with their expected milliseconds."""

    queue: str
    ahead: str  # a JSON object: action to milliseconds
    budget: float  # milliseconds in all
    room: int  # steps in all
    look: bool = True  # whether the run or the queue is paused; else it was looked at a moment ago


NOTHING_AHEAD = Ahead("", "{}", 0.0, 0, look=False)


class Journal(Growing):
    """The engine's statements on one database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self._settings = settings
        self._limits = {
            "seconds": settings.lease_seconds,
            "timeout": settings.step_timeout,
            # One second more than the kill takes: the lease must outlive the body that may still finish.
            "grace": settings.timeout_grace + 1.0,
        }

    # --- a worker's hot path

    def claim(
        self, run: str, idx: Sequence[int], worker: str, *, durable: bool = True
    ) -> tuple[list[Claimed], str, str]:
        """Lease the ready ones of these steps; with them the workflow's name and the correlation id.

        `durable`: a crash of Postgres must not forget it (see the statement).
        """
        lease = str(uuid4())
        commit = "on" if durable else "off"
        rows = self._rows(
            "claim", run=run, idx=list(idx), lease=lease, worker=worker, commit=commit, **self._limits
        )
        order = {step: place for place, step in enumerate(idx)}
        claimed = [_claimed(row[:12], lease, *row[12:15]) for row in rows]
        claimed.sort(key=lambda step: order[step.idx])
        return (claimed, rows[0][15], rows[0][16]) if rows else ([], "", "")

    def claim_ranked(
        self, run: str, queue: str, actions: Sequence[str], worker: str, *, room: int, seconds: float
    ) -> tuple[list[Claimed], str, str]:
        """Lease the most urgent ready step that a run has in a queue, of actions that this process knows.

        A short one among many takes along others like it, `room` in all and for `seconds` together.
        """
        lease = str(uuid4())
        always = {"run": run, "lease": lease, "worker": worker, "commit": "on", **self._limits}
        asked = {"queue": queue, "actions": list(actions), "room": room, "most": seconds}
        asked |= {"crowd": CROWD, **always}
        again = False

        def once() -> list[tuple[Any, ...]]:
            nonlocal again
            with self.database.connection() as connection:
                if again:  # the first answer went unheard: its steps are ours, and nobody else runs them
                    held = [row[0] for row in _ask(connection, "leased", run=run, lease=lease)]
                    if held:
                        return _ask(connection, "claim", idx=held, **always)
                again = True
                return _ask(connection, "claim_ranked", **asked)

        rows = self.database.again(once)
        claimed = [_claimed(row[:12], lease, *row[12:15]) for row in rows]
        claimed.sort(key=lambda step: (-step.priority, -(step.rank or 0.0), step.idx))
        return (claimed, rows[0][15], rows[0][16]) if rows else ([], "", "")

    def complete(
        self,
        run: str,
        outcomes: Sequence[Outcome],
        *,
        ahead: Ahead | None = None,
        worker: str = "",
        first: Callable[[Connection], None] | None = None,
    ) -> Completed:
        """Record outcomes and free what depends on them; keep the freed steps that `ahead` wants.

        `first` runs in the same transaction before it, and only counts if every outcome is still ours.
        """
        fatal = [outcome for outcome in outcomes if outcome.fatal]
        lease = str(uuid4())
        # Nobody goes on in a run that ends: what was moved for that would be cancelled under a lease that nobody knows.
        statement, arguments = self._completion(run, outcomes, lease, None if fatal else ahead, worker)
        if not fatal and first is None:
            return _completed(self._rows(statement, **arguments), lease)

        def together() -> Completed:
            with self.database.transaction() as connection:
                if first is not None:
                    first(connection)
                done = _completed(_ask(connection, statement, **arguments), lease)
                if first is not None and len(done.won) < len(outcomes):
                    raise _Stale
                cause = next((outcome for outcome in fatal if outcome.idx in done.won), None)
                if cause is not None:
                    ended = self._end(connection, run, RunState.FAILED, cause.error)
                    if ended:
                        dead = [outcome.idx for outcome in fatal if outcome.idx in done.won]
                        _ask(connection, "bury", run=run, idx=dead)
                    return done._replace(mine=[], free=[], closed=ended)
                return done

        try:
            return self.database.again(together)
        except _Stale:
            return Completed(frozenset(), [], [], False)

    def _completion(
        self, run: str, outcomes: Sequence[Outcome], lease: str, ahead: Ahead | None, worker: str
    ) -> tuple[str, dict[str, Any]]:
        """The statement that records these outcomes, and what it takes."""
        wanted = (ahead or NOTHING_AHEAD)._asdict()
        clean = not wanted.pop("look") and all(outcome.error is None for outcome in outcomes)
        return "complete_clean" if clean else "complete", {
            "run": run,
            "outcomes": wire.outcomes(outcomes, time.monotonic()),
            "new_lease": lease,
            "worker": worker,
            "short": SHORT_SECONDS,
            **wanted,
            **self._limits,
        }

    def intend(self, run: str, step: Claimed) -> bool:
        """Announce the effect of a step, durably; False where it is no longer ours."""
        return bool(self._rows("intend", run=run, idx=step.idx, lease=step.lease))

    def complete_in(
        self, connection: Connection, run: str, outcome: Outcome, *, ahead: Ahead | None, worker: str
    ) -> Completed | None:
        """Record a result inside a transaction that its body has begun; None where the step is no longer ours."""
        lease = str(uuid4())
        statement, arguments = self._completion(run, [outcome], lease, ahead, worker)
        completed = _completed(_ask(connection, statement, **arguments), lease)
        return completed if outcome.idx in completed.won else None

    def results(self, run: str, idx: Iterable[int]) -> dict[int, Json]:
        """The results of these steps by id."""
        return dict(self._rows("results", run=run, idx=list(idx)))

    def names(self, run: str, idx: Iterable[int]) -> dict[int, str]:
        """The names of these steps by id: for messages."""
        return dict(self._rows("names", run=run, idx=list(idx)))

    def params(self, run: str) -> dict[str, Json]:
        """The parameters of a run."""
        return cast("dict[str, Json]", self._rows("params", run=run)[0][0])

    def renew(self, held: Sequence[tuple[str, int, str, float, str | None]]) -> set[tuple[str, int]]:
        """Prolong leases (run, idx, lease, seconds, progress as JSON); answers with those that are still ours."""
        run, idx, lease, seconds, progress = map(list, zip(*held, strict=True))
        rows = self._rows("renew", run=run, idx=idx, lease=lease, seconds=seconds, progress=progress)
        return {(str(row[0]), row[1]) for row in rows}

    def release(self, run: str, steps: Sequence[Claimed]) -> list[int]:
        """Hand back claimed steps that were not begun."""
        rows = self._rows("release", run=run, idx=[s.idx for s in steps], lease=[s.lease for s in steps])
        return [row[0] for row in rows]

    def learn(self, measured: Mapping[str, tuple[int, float]]) -> None:
        """Merge measured means (runs, milliseconds) by action."""
        self._rows(
            "learn",
            action=list(measured),
            runs=[runs for runs, _ in measured.values()],
            mean=[mean for _, mean in measured.values()],
        )

    def durations(self) -> dict[str, float]:
        """The mean milliseconds of every action that was ever measured."""
        return dict(self._rows("durations"))

    def notify(self, run: str) -> tuple[tuple[str, int] | None, bool]:
        """Wake the clients that wait for this run.

        Answers with the step (run, idx) that it is a child of, and whether something follows its end.
        """
        rows = self._rows("notify", run=run)
        if not rows:
            return None, False
        parent, idx, follow, _ = rows[0]
        return None if parent is None else (str(parent), idx), follow

    def add(self, connection: Connection, run: str, steps: Iterable[PlannedStep], *, sent: bool) -> None:
        """Insert steps by COPY, inside a transaction: those without parents are ready at once.

        Those with a limit in front of them are parked, until they are let in (admission.py).
        """
        timed: list[int] = []
        with connection.cursor().copy(SQL["copy_steps"]) as copy:
            for block in wire.copy_rows(run, _watched(steps, timed), sent=sent):
                copy.write(block)
        if timed:
            _ask(connection, "time_queue", run=run, idx=timed)

    # --- waiting

    def park(self, run: str, step: Parked) -> None:
        """Put a running step aside. Raises StateError where it is no longer ours."""
        with_json = {**step._asdict(), "wait": wire.dumps(step.wait)}
        if not self._rows("park", run=run, **with_json):
            raise not_ours(run, step)

    def decide(self, run: str, decision: Callable[[Connection], Outcome | Parked]) -> Outcome | None:
        """Ask, while nobody else tells the run anything, whether a step goes on or is parked; None where it is parked.

        `signal` takes the same turn, so what it brings is either seen by the decision or finds the step parked. Raises
        StateError where the step is no longer ours; then nothing stays of what the decision wrote.
        """

        def once() -> Outcome | None:
            with self.database.transaction() as connection:
                _ask(connection, "lock_run", run=run)
                found = decision(connection)
                if isinstance(found, Outcome):
                    return found
                if not _ask(
                    connection, "park", run=run, **{**found._asdict(), "wait": wire.dumps(found.wait)}
                ):
                    raise not_ours(run, found)
                return None

        return self.database.again(once)

    def signal(
        self, run: str, name: str, key: str, payload: Json, waits_for: str, *, sent: bool = True
    ) -> Told:
        """Keep a signal and wake who waits for it, in one transaction. The same key counts once.

        `sent` says that the caller will publish what it woke; else the next tick does.
        """

        def once() -> Told:
            with self.database.transaction() as connection:
                found = _ask(connection, "lock_run", run=run)
                if not found:
                    return Told(None, "", False, [])
                state, workflow = found[0]
                if RunState(state) in RUN_ENDS:
                    return Told(RunState(state), workflow, False, [])
                text = wire.dumps(payload)
                new = bool(_ask(connection, "send_signal", run=run, name=name, key=key, payload=text))
                # Also for one that was told before: its sender may have died before it could announce the step.
                rows = _ask(connection, "wake", run=run, waits_for=waits_for, by="signal", sent=sent)
                return Told(RunState(state), workflow, new, [_ready(*row) for row in rows])

        return self.database.again(once)

    def wake(self, run: str, waits_for: str, by: str) -> list[Ready]:
        """Wake the steps of a run that wait for something; the caller publishes them."""
        return [_ready(*row) for row in self._rows("wake", run=run, waits_for=waits_for, by=by, sent=True)]

    def take_woken(self, run: str, idx: int) -> dict[tuple[str, str], list[Ready]]:
        """The step that a child run woke with its end, for publishing, by (run, workflow)."""
        return _by_run(self._rows("take_woken", run=run, idx=idx))

    def ending(self, connection: Connection, run: str, limit: int) -> Ending:
        """How a run ended, or its present state; results as JSON, where they are at most `limit` bytes."""
        state, error, size, results = _ask(connection, "ending", run=run, limit=limit)[0]
        return Ending(RunState(state), error, size, None if results is None else results.encode())

    def result_of(self, connection: Connection, run: str, step: str) -> Json:
        """The result of one step of a run, inside a transaction; None where it has none."""
        return next(
            (row[0] for row in _ask(connection, "result_of", run=run, names=[step, f"{step}[]"])), None
        )

    def cancelled_tasks(self, connection: Connection, run: str) -> list[str]:
        """The foreign tasks that steps waited for when their run ended, inside a transaction."""
        return [row[0] for row in _ask(connection, "cancelled_tasks", run=run)]

    def take_signal(self, connection: Connection, run: str, name: str, idx: int) -> Signal | None:
        """The oldest signal of a name that no other step has taken, inside a decision."""
        rows = _ask(connection, "take_signal", run=run, name=name, idx=idx)
        return Signal._make(rows[0]) if rows else None

    def signals(self, connection: Connection, run: str, name: str) -> list[Signal]:
        """All signals of a name, the oldest first, inside a decision."""
        return [Signal._make(row) for row in _ask(connection, "read_signals", run=run, name=name)]

    def clock(self, connection: Connection | None = None) -> float:
        """The time by Postgres, in seconds since 1970; also inside a decision."""
        rows = self._rows("clock") if connection is None else _ask(connection, "clock")
        return float(rows[0][0])

    def tell(self, connection: Connection, run: str, kind: str, idx: int | None, detail: Json) -> None:
        """Write an event, inside a transaction."""
        _ask(connection, "tell", run=run, kind=kind, idx=idx, detail=wire.dumps(detail))

    # --- runs

    def open(
        self, connection: Connection, definition: tuple[str, str, bytes], row: Mapping[str, Any]
    ) -> bool:
        """Insert a definition and a run, inside a transaction; False where the key has a run already."""
        self.define(connection, definition)
        return bool(_ask(connection, "open_run", definition=definition[0], **row))

    def define(self, connection: Connection, definition: tuple[str, str, bytes]) -> None:
        """Keep a definition (digest, name, canonical JSON), inside a transaction."""
        digest, name, spec = definition
        _ask(connection, "define", digest=digest, name=name, spec=spec.decode())

    def read(self, connection: Connection, workflow: str, run: str, key: str | None) -> Run:
        """The run as its own transaction sees it: the new one, or the one that the key has already."""
        return Run.from_row(_ask_theirs(connection, "read_run", run=run, workflow=workflow, key=key)[0])

    def end(self, run: str, state: RunState, error: dict[str, Json] | None = None) -> bool:
        """End a run, every open step of it, and its child runs; False where it was over already."""

        def once() -> bool:
            with self.database.transaction() as connection:
                return self._end(connection, run, state, error)

        return self.database.again(once)

    @staticmethod
    def _end(connection: Connection, run: str, state: RunState, error: dict[str, Json] | None) -> bool:
        text = None if error is None else wire.dumps(error)
        ended = _ask(connection, "end_run", run=run, state=state.value, error=text)
        if not ended:
            return False
        _ask(connection, "stop_steps", run=run)
        has_children, gates = ended[0][1:]
        if gates is not None:  # it has limits: who waits for its places gets them with the next tick
            _ask(connection, "leave_all", run=run)
        if has_children:
            for (child,) in _ask(connection, "open_children", run=run):
                Journal._end(connection, child, RunState.CANCELLED, None)
        return True

    # --- recovery

    def ready_queues(self) -> list[str]:
        """The queues that have ready steps."""
        return [row[0] for row in self._rows("ready_queues")]

    def take_ready(
        self, queue: str, *, sent: bool, age: float, limit: int
    ) -> dict[tuple[str, str], list[Ready]]:
        """Ready steps to publish, by (run, workflow); the workflow of a paused run is "". See the statement."""
        return _by_run(self._rows("take_ready", queue=queue, sent=sent, age=age, limit=limit))

    def take_due(self, limit: int) -> dict[tuple[str, str], list[Ready]]:
        """Parked steps whose time has come, ready again, by (run, workflow)."""
        return _by_run(self._rows("take_due", limit=limit))

    def take_resumed(self, limit: int) -> dict[tuple[str, str], list[Ready]]:
        """The same, of those that waited for a queue which is paused no longer."""
        return _by_run(self._rows("take_resumed", limit=limit))

    def take_expired(self, limit: int) -> list[Expired]:
        """Steps whose lease has run out for good; those where it is the first time are suspected from now on."""
        lease = str(uuid4())
        rows = self._rows("take_expired", lease=lease, limit=limit, **self._limits)
        self._rows("suspect", limit=limit, seconds=self._settings.lease_seconds)
        return [Expired._make((str(run), *rest, lease, intent, wait)) for run, *rest, intent, wait in rows]

    def beat(self, name: str, detail: Json) -> None:
        """Leave a sign of life."""
        self._rows("beat", name=name, detail=wire.dumps(detail))

    # --- one way to the database

    def _within(self, connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
        return _ask(connection, block, **arguments)

    def _rows(self, block: str, **arguments: Any) -> list[tuple[Any, ...]]:

        def once() -> list[tuple[Any, ...]]:
            with self.database.connection() as connection:
                return _ask(connection, block, **arguments)

        return self.database.again(once)


def _ask(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    answer = getattr(connection, "answer", None)
    if answer is not None:  # a journal in memory (workflows/testing) does what a statement says
        found: list[tuple[Any, ...]] = answer(SQL[block], arguments)
        return found
    # A cursor of our own: the connection may be a caller's, with rows of another shape.
    statement = _NUMBERED[block]
    cursor = RawCursor(connection, row_factory=tuple_row).execute(statement.text, statement.values(arguments))
    return rows_of(cursor)


def _ask_theirs(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    """The same on a connection that may be a caller's: Django's reads JSON as text, and times in a zone of its own."""
    if getattr(connection, "answer", None) is not None:
        return _ask(connection, block, **arguments)
    cursor = Cursor(connection, row_factory=tuple_row)
    for name, loader in (("jsonb", JsonbLoader), ("timestamptz", TimestamptzLoader)):
        cursor.adapters.register_loader(name, loader)
    return cursor.execute(SQL[block], arguments).fetchall()


class _Stale(Exception):
    """A lease was lost; roll back what was written before it was known."""


def _watched(steps: Iterable[PlannedStep], timed: list[int]) -> Iterator[PlannedStep]:
    """The steps, and on the way the ids of those whose time in the queue begins now."""
    for step in steps:
        if step.options is not None and "queue_timeout" in step.options and not step.missing:
            timed.append(step.idx)
        yield step


def _ready(
    idx: int,
    name: str,
    action: str,
    queue: str,
    priority: int,
    attempt: int,
    failures: int,
    rank: float | None,
    expect: float | None,
) -> Ready:
    return Ready(idx, name, action, queue, priority, rank, expect, alone=attempt > failures)


def _by_run(rows: Iterable[tuple[Any, ...]]) -> dict[tuple[str, str], list[Ready]]:
    found: dict[tuple[str, str], list[Ready]] = {}
    for run, workflow, *columns in rows:
        found.setdefault((str(run), workflow or ""), []).append(_ready(*columns))
    return found


def _claimed(
    columns: Sequence[Any],
    lease: str,
    wait: dict[str, Json] | None = None,
    rank: float | None = None,
    expect: float | None = None,
) -> Claimed:
    return Claimed._make((*columns, lease, wait, rank, expect))


def _completed(rows: Iterable[tuple[Any, ...]], lease: str) -> Completed:
    won, closed = [], False
    mine: list[Claimed] = []
    free: list[Ready] = []
    gates: set[str] = set()
    for kind, *rest in rows:
        if kind == "done":
            won, closed = rest[10], rest[1] == RunState.SUCCEEDED
            gates.update(rest[11] or () if closed else ())
        elif kind == "mine":
            mine.append(_claimed(rest[:12], lease, None, *rest[12:]))
        elif kind == "free":
            free.append(Ready._make((*rest[:5], *rest[12:], False, 0.0)))
        else:  # it waits for a limit of that name
            gates.add(kind)
    return Completed(frozenset(won), mine, free, closed, tuple(gates))


# For modules that add statements of their own to a transaction of the journal.
ask, ready_of = _ask, _ready
