"""Letting steps through their gates: what `gates` decides, done on the journal and told to the workers.

The law: an admission is one transaction, and all admissions take turns; what it decides is what Postgres knows at
that moment, never what a process remembers. Whoever completes steps that held places asks on behalf of those who
wait. A crash in between, a cancelled run or a lost worker costs them a tick or two: the sweep asks again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.rows import tuple_row

from ..tasks.database import Connection, Database
from ..tasks.queries import load
from ..tasks.settings import Settings
from .dispatch import Dispatcher
from .gates import Decision, Gate, Waiter, decide, lines_of, others, union
from .pauses import Pauses
from .records import Completed, Ready

SQL = load("trellis.workflows.sql", "limits.sql")

_LINES = 100  # gates in one transaction
_BATCH = 500  # steps that one gate lets in at once
_SWEPT = 500  # gates, and places, that one tick looks at
_WINDOW = 500  # steps in front of a line among which the longest path goes first
_AHEAD = 2.0  # ticks for which slots of a rate are given out: the next tick gives out the next ones
_SOON = 0.02  # seconds that no message is delayed for
_CURSORS = ("sweep:lines", "sweep:places")

Admitted = dict[tuple[str, str], list[Ready]]  # by run and workflow


class Place(NamedTuple):
    """A place in a gate, by its holder."""

    run: str
    idx: int  # -1: the run itself


class Admission:
    """The gates of one journal, as one process works them."""

    def __init__(self, database: Database, dispatcher: Dispatcher | None, settings: Settings) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._horizon = settings.tick_seconds * _AHEAD
        self.patience = 1.0  # seconds that a worker waits for a body's slot under a rate

    def admit(self, lines: Iterable[str], over: Sequence[Place] = ()) -> int:
        """Let in who may pass these gates, and announce them; answers with how many those were.

        over: holders of places that are over and give them up.
        """
        count = 0
        todo = union(lines)
        while todo:
            now, todo = todo[:_LINES], todo[_LINES:]
            found, again = self._admit(now, over, thorough=False)
            over = ()
            count += self._announce(found)
            todo = union(todo, again)
        return count

    def left(
        self, run: str, over: Iterable[tuple[int, Mapping[str, Any] | None]], completed: Completed
    ) -> None:
        """Steps of a run (with their options) are over: their places are free, and so is the run's if that is over."""
        gates = set(completed.gates)
        places = []
        for idx, options in over:
            lines = lines_of(options)
            if lines:
                gates.update(lines)
                places.append(Place(run, idx))
        if completed.closed and gates:
            places.append(Place(run, -1))
        if gates:
            self.admit(gates, places)

    def sweep(self) -> int:
        """Ask again at gates that somebody waits for, and forget places that nobody holds: a bounded part of them.

        Several at once are safe, and so is one that dies half-way.
        """
        lines = self._database.again(self._some_lines)
        count = 0
        while lines:
            now, lines = lines[:_LINES], lines[_LINES:]
            found, again = self._admit(now, (), thorough=True)
            count += self._announce(found)
            count += self.admit(again)
        self._database.again(self._forget_some)
        return count

    def pace(self, rate: Sequence[Any]) -> float:
        """Reserve the next start under a rate; answers with the seconds until then."""
        line, limit, per = rate

        def once() -> float:
            with self._database.connection() as connection:
                rows = _ask(connection, "pace", name=f"start:{line}", interval=per / limit)
                return max(0.0, float(rows[0][0]))

        return self._database.again(once)

    # --- one admission

    def _admit(self, lines: list[str], over: Sequence[Place], *, thorough: bool) -> tuple[Admitted, set[str]]:
        """One transaction; answers with who is ready, and with the gates that have to be asked again.

        Steps of paused runs, which became free after the pause, step out of the line.
        """

        def once() -> tuple[Admitted, set[str], set[str]]:
            with (
                self._database.connection() as connection,
                connection.pipeline(),
                connection.transaction(),
            ):
                connection.execute(SQL["turn"])
                if over:
                    run, idx = [place.run for place in over], [place.idx for place in over]
                    connection.execute(SQL["leave"], {"run": run, "idx": idx})
                if thorough:
                    connection.execute(SQL["forget"], {"lines": lines})
                rows = _ask(
                    connection, "look", lines=lines, batch=_BATCH, horizon=self._horizon, window=_WINDOW
                )
                going = [row for row in rows if not row[-1]]
                ready, again = self._decide(connection, going) if going else ({}, set())
                again |= {row[0] for row in rows if row[-1]}
                return ready, again, {str(row[4]) for row in rows if row[-1]}

        ready, again, paused = self._database.again(once)
        for run in paused:
            Pauses(self._database).park(run)
        return ready, again

    def _decide(self, connection: Connection, rows: list[tuple[Any, ...]]) -> tuple[Admitted, set[str]]:
        gates: dict[str, Gate] = {}
        waiting: dict[str, list[Waiter]] = defaultdict(list)
        moment: datetime = rows[0][3]
        for line, used, wait, _, run, idx, fair, own, rate, entry, _ in rows:
            gates[line] = Gate(used, wait)
            if run is not None:
                waiting[line].append(Waiter(str(run), idx, fair, own or [], rate, entry))
        if not waiting:
            return {}, set()
        also = others(waiting) - gates.keys()
        if also:
            counted = _ask(connection, "counts", lines=sorted(also), moment=moment)
            gates.update({line: Gate(used, wait) for line, used, wait in counted})
        decision = decide(waiting, gates, self._horizon)
        ready: Admitted = defaultdict(list)
        again = self._enter(connection, decision, ready)
        self._write(connection, decision, moment, ready)
        # Somebody who went to another line, a tenant with less than its share, a full batch: others may follow.
        changed = bool(decision.admitted or decision.entered or decision.moved)
        return ready, again | decision.roomy if changed else again

    def _enter(self, connection: Connection, decision: Decision, ready: Admitted) -> set[str]:
        if not decision.entered:
            return set()
        rows = _ask(
            connection,
            "enter",
            run=[each.run for each, _ in decision.entered],
            idx=[each.idx for each, _ in decision.entered],
            line=[line for _, line in decision.entered],
        )
        again = {line for *_, line in rows if line is not None}
        for run, workflow, *columns, line in rows:
            if line is None:
                ready[str(run), workflow].append(_ready(columns))
        return again

    def _write(self, connection: Connection, decision: Decision, moment: datetime, ready: Admitted) -> None:
        changed: list[tuple[Waiter, str | None, float]] = [
            *((each, None, delay) for each, delay in decision.admitted),
            *((each, line, 0.0) for each, line in decision.moved),
        ]
        names = union(decision.next_slots, (line for line, turn in decision.turns.items() if turn))
        if not changed and not names:
            return
        rows = _ask(
            connection,
            "admit",
            run=[each.run for each, _, _ in changed],
            idx=[each.idx for each, _, _ in changed],
            line=[line for _, line, _ in changed],
            delay=[delay for _, _, delay in changed],
            moment=moment,
            names=names,
            turns=[decision.turns.get(name) for name in names],
            slots=[decision.next_slots.get(name) for name in names],
        )
        for run, workflow, *columns, delay in rows:
            ready[str(run), workflow].append(_ready(columns, delay if delay > _SOON else 0.0))

    def _announce(self, found: Admitted) -> int:
        for (run, workflow), steps in found.items():
            if self._dispatcher is not None:
                self._dispatcher.publish(run, workflow, steps)
        return sum(map(len, found.values()))

    # --- the sweep

    def _some_lines(self) -> list[str]:
        with self._database.connection() as connection:
            after = _cursor(connection, _CURSORS[0])
            rows = _ask(connection, "lines", after=after, limit=_SWEPT)
            if rows or after:
                at = rows[-1][0] if len(rows) == _SWEPT else None
                connection.execute(SQL["remember"], {"name": _CURSORS[0], "at": at})
            return [row[0] for row in rows]

    def _forget_some(self) -> None:
        with self._database.connection() as connection:
            after, run, idx = (_cursor(connection, _CURSORS[1]) or f"\n{_FIRST}\n-2").split("\n")
            rows = _ask(connection, "forget_some", after=after, run=run, idx=int(idx), limit=_SWEPT)
            if rows or after:
                at = None
                if rows and rows[0][3] == _SWEPT:
                    at = "\n".join(map(str, rows[0][:3]))
                connection.execute(SQL["remember"], {"name": _CURSORS[1], "at": at})


_FIRST = "00000000-0000-0000-0000-000000000000"


def _cursor(connection: Connection, name: str) -> str:
    rows = _ask(connection, "cursor", name=name)
    return str(rows[0][0] or "") if rows else ""


def _ready(columns: Sequence[Any], delay: float = 0.0) -> Ready:
    idx, name, action, queue, priority, attempt, failures, rank, expect = columns
    return Ready(idx, name, action, queue, priority, rank, expect, attempt > failures, delay)


def _ask(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    # Fetched without a look at `description`, which a pipeline does not know yet.
    return connection.cursor(row_factory=tuple_row).execute(SQL[block], arguments).fetchall()
