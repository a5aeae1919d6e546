"""Schedules: runs that start by themselves.

The law: a tick's run, and the move to the next tick, are one transaction under the lock of the schedule's row, and
the run's key is made of the tick. So with any number of beats, each of them killed wherever you like, a tick
starts one run, and none is left out but by the schedule's own policy. The clock is that of Postgres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from ..tasks.database import Connection, Database
from ..tasks.errors import ConflictError, NotFound
from ..tasks.hints import choices
from ..tasks.logs import get_logger
from ..tasks.settings import Settings
from . import almanac, ending, launch, registry, timetable, wire
from .almanac import Held, Schedule
from .declared import DAY, Declared, params_at
from .definition import Workflow
from .engine import Engine
from .journal import Journal
from .queries import Queries
from .records import Json, Run
from .states import RunState
from .timetable import Due, Timetable, wrong

_SCHEDULES = 200  # that one tick of beat looks at
_TICKS = 50  # of one schedule in one transaction
_ROUNDS = 20  # transactions of one schedule in one tick of beat
_AGAIN = 5.0  # seconds until a schedule that could not start its run is tried again
BACKFILL_MAX = 10_000  # ticks

log = get_logger("trellis.schedules")


# --- what a tick of beat does


def fire(engine: Engine) -> int:
    """Start the runs of all schedules that are due; answers with how many."""
    with engine.database.connection() as connection:
        names = almanac.due(connection, _SCHEDULES)
    started = 0
    for name in names:
        try:
            for _ in range(_ROUNDS):
                more = _fire_one(engine, name)
                started += more
                if more < _TICKS:
                    break
        except Exception as error:  # the others must not wait for it
            problem = f"{type(error).__name__}: {error}"
            log.warning("schedule.failed", schedule=name, error=problem)
            with engine.database.connection() as connection:
                almanac.ask(connection, "fail", name=name, problem=problem[:4000], seconds=_AGAIN)
    return started


def _fire_one(engine: Engine, name: str) -> int:
    with engine.database.connection() as connection:
        found = almanac.one(connection, name)
        doomed = almanac.doomed(connection, name)
    if found is None:
        return 0
    workflow = _workflow_of(Queries(engine.database), found)
    workflow.validate()  # before anything is cancelled: a run that cannot be started ends none
    for run in doomed:
        engine.journal.end(run, RunState.CANCELLED)
        ending.announce(engine.journal, engine.dispatcher, run)
    with engine.database.transaction() as connection:
        held = almanac.hold(connection, name, wait=False)
        if held is None or held.schedule.definition != found.definition:
            return 0  # somebody else is at it, and the next tick looks again
        return _handle(engine.journal, engine.settings, connection, held, workflow)


def _handle(
    journal: Journal, settings: Settings, connection: Connection, held: Held, workflow: Workflow
) -> int:
    """Decide the due ticks of a schedule whose row is locked; answers with the runs that were started."""
    schedule = held.schedule
    found = _due(schedule, held.now)
    running = almanac.still_open(connection, held.running)
    choice = timetable.choose(schedule.overlap, found.ticks, busy=bool(running))
    if choice.queue:
        almanac.queue(connection, schedule.name, choice.queue, by_hand=False)
    begin = _Beginning(journal, settings, connection, schedule, workflow)
    started = [run for tick in choice.start if (run := begin(tick))]
    if schedule.queued or choice.queue:
        started += _from_queue(begin, busy=bool(running or started))
    if started:
        log.info("schedule.fired", schedule=schedule.name, runs=started)
    if found.missed is not None:
        log.warning("schedule.missed", schedule=schedule.name, since=timetable.stamp(found.missed))
    if choice.skip:
        log.info("schedule.skipped", schedule=schedule.name, ticks=len(choice.skip))
    almanac.ask(
        connection,
        "move",
        name=schedule.name,
        **_place(schedule.timetable, schedule.name, found.following),
        running=[*running, *started],
        last_at=found.ticks[-1] if found.ticks else None,
        last_run=started[-1] if started else None,
        started=len(started),
        skipped=len(choice.skip),
        missed_at=found.missed,
    )
    return len(started)


def _due(schedule: Schedule, now: datetime) -> Due:
    if schedule.paused or schedule.next_at is None:
        return Due([], None, schedule.next_at)
    return timetable.due(schedule.timetable, schedule.name, schedule.next_at, now, schedule.catch_up, _TICKS)


class _Beginning:
    """Writes the runs of ticks, inside the transaction that decides them."""

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        connection: Connection,
        schedule: Schedule,
        workflow: Workflow,
    ) -> None:
        self.journal = journal
        self.settings = settings
        self.connection = connection
        self.schedule = schedule
        self.workflow = workflow

    def __call__(self, tick: datetime, key: str | None = None) -> str | None:
        """The id of the new run; None where the tick has a run already. The tick of beat announces it."""
        schedule = self.schedule
        params = params_at(self.workflow, schedule.params, schedule.tick_param, schedule.timezone, tick)
        key = key or timetable.key_of(schedule.name, tick)
        prepared = launch.prepare(self.workflow, params, self.settings, key=key)
        if not launch.write(self.journal, self.connection, prepared, sent=False):
            return None
        return prepared.run


def _from_queue(begin: _Beginning, *, busy: bool) -> list[str]:
    """Start what waits: with `allow` a whole batch, else one run once no other one is open."""
    schedule, started = begin.schedule, []
    together = schedule.overlap == "allow"
    for _ in range(0 if busy and not together else _TICKS):
        taken = almanac.unqueue(begin.connection, schedule.name, 1, paused=schedule.paused)
        run = begin(taken[0]) if taken else None
        if run is not None:
            started.append(run)
        if not taken or (started and not together):
            break
    return started


def _workflow_of(queries: Queries, schedule: Schedule) -> Workflow:
    """The workflow as it was when the schedule was made: by its digest, whatever this process knows by its name."""
    known = registry.workflows.get(schedule.workflow)
    if isinstance(known, Workflow) and known.digest() == schedule.definition:
        return known
    return Workflow.from_dict(queries.definition(schedule.definition))


def _place(table: Timetable, name: str, tick: datetime | None) -> dict[str, datetime | None]:
    """Where a schedule stands: its next tick, and when that is handled."""
    return {"next_at": tick, "due_at": None if tick is None else table.due(name, tick)}


# --- what people do


class Schedules:
    """The schedules of a database: `client.schedules`."""

    def __init__(self, database: Database, journal: Journal, settings: Settings) -> None:
        self.database = database
        self._journal = journal
        self._settings = settings
        self._queries = Queries(database)

    def create(
        self,
        name: str,
        workflow: launch.Startable,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str = "UTC",
        params: Mapping[str, Json] | None = None,
        jitter: float = 0.0,
        overlap: str = "skip",
        catch_up: float | timedelta = DAY,
        tick_param: str | None = None,
        anchor: datetime | None = None,
        paused: bool = False,
        replace: bool = False,
    ) -> Schedule:
        """Make a schedule; the same one again changes nothing.

        name: of the schedule; letters, digits, `_`, `-` and `.`.
        workflow: as for `start`. Its definition is stored as it is now, and stays until the schedule is replaced.
        cron: five fields (minute, hour, day of month, month, day of week), or @hourly, @daily, @weekly, @monthly.
        every: seconds (or a timedelta) from 1 on, instead of cron: real time, counted from `anchor`.
        timezone: the IANA name of the zone that cron is read in.
        params: of each run.
        jitter: each run starts up to so many seconds after its tick.
        overlap: what a tick does while a run of an earlier one is open: "skip" (nothing), "queue" (wait for it),
            "cancel" (end it and start), "allow" (start beside it).
        catch_up: ticks that nobody handled in time (an outage) are made up for within so many seconds.
        tick_param: the parameter that gets the tick, as ISO 8601 in the schedule's time zone.
        anchor: the moment from which `every` counts; now without it.
        paused: make it, and let nothing fire until `resume`.
        replace: put it in the place of another one of this name.

        Raises DefinitionError, ParameterError, NotFound (the workflow), ConflictError (the name is another one's).
        """
        found = launch.resolve(workflow, self._queries)
        declared = Declared(
            name, found, cron, every, timezone, params or {}, jitter, overlap, catch_up, tick_param, anchor
        )
        return self.apply(declared, replace=replace, paused=paused)

    def apply(self, declared: Declared, *, replace: bool = True, paused: bool = False) -> Schedule:
        """Make or change a schedule so that it is as declared; pausing and what it has done stay as they are."""

        def once() -> Schedule:
            with self.database.transaction() as connection:
                now = almanac.now(connection)
                content = declared.content(now)
                spec = declared.workflow.spec
                self._journal.define(connection, (spec.digest(), spec.name, spec.canonical()))
                table = _table(content)
                row = {**content, **_place(table, declared.name, table.first(now))}
                row["params"] = wire.dumps(content["params"])
                if not almanac.ask(connection, "insert", **row, paused=paused):
                    held = self._hold(connection, declared.name)
                    _change(
                        connection, held, content, row, counts_on=declared.anchor is None, replace=replace
                    )
                return self._one(connection, declared.name)

        return self.database.again(once)

    def list(self, workflow: str | None = None) -> Sequence[Schedule]:
        """All schedules, or those of a workflow, by name."""
        return self._read(workflow)

    def get(self, name: str) -> Schedule:
        """A schedule. Raises NotFound."""

        def once() -> Schedule:
            with self.database.connection() as connection:
                return self._one(connection, name)

        return self.database.again(once)

    def pause(self, name: str) -> Schedule:
        """Let nothing of it start, but what is asked for by hand. Open runs go on. Raises NotFound."""
        return self._pause(name, paused=True)

    def resume(self, name: str) -> Schedule:
        """Go on with the next tick from now; what fell into the pause is not made up for. Raises NotFound."""
        return self._pause(name, paused=False)

    def delete(self, name: str) -> None:
        """Remove a schedule; its runs stay, and open ones go on. Raises NotFound."""
        with self.database.connection() as connection:
            if not almanac.ask(connection, "delete", name=name):
                raise self._unknown(name)

    def trigger(self, name: str) -> Run:
        """Start a run now, whatever the overlap policy says and also while it is paused. Raises NotFound."""
        key = f"schedule:{name}:by-hand:{uuid4()}"
        workflow = _workflow_of(self._queries, self.get(name))

        def once() -> Run:
            with self.database.transaction() as connection:
                held = self._hold(connection, name)
                schedule = held.schedule
                begin = _Beginning(self._journal, self._settings, connection, schedule, workflow)
                run = begin(held.now.replace(microsecond=0), key)
                almanac.ask(
                    connection,
                    "triggered",
                    name=name,
                    run=run,
                    running=almanac.still_open(connection, held.running),
                )
                return self._journal.read(connection, workflow.name, run or "", key)

        return self.database.again(once)

    def backfill(self, name: str, begin: datetime, end: datetime) -> int:
        """Have the ticks from `begin` on and before `end` run, the oldest first; answers with how many there are.

        Ticks that have a run already keep it. They run one after the other, with `overlap="allow"` at once, and
        also while the schedule is paused. Raises NotFound, DefinitionError.
        """
        for what, moment in (("begin", begin), ("end", end)):
            if moment.tzinfo is None:
                raise wrong(name, f"{what} {moment.isoformat()} needs a time zone, for example +01:00 or Z")

        def once() -> int:
            with self.database.transaction() as connection:
                schedule = self._hold(connection, name).schedule
                ticks: list[datetime] = []
                for tick in schedule.timetable.between(begin, end):
                    ticks.append(tick)
                    if len(ticks) > BACKFILL_MAX:
                        raise wrong(
                            name, f"more than {BACKFILL_MAX:,} ticks lie in that time: backfill it in parts"
                        )
                almanac.queue(connection, name, ticks, by_hand=True)
                almanac.ask(connection, "count_queue", name=name)
                return len(ticks)

        return self.database.again(once)

    # --- the parts

    def _read(self, workflow: str | None = None) -> Sequence[Schedule]:
        def once() -> Sequence[Schedule]:
            with self.database.connection() as connection:
                return almanac.read(connection, workflow)

        return self.database.again(once)

    def _one(self, connection: Connection, name: str) -> Schedule:
        found = almanac.one(connection, name)
        if found is None:
            raise self._unknown(name)
        return found

    def _hold(self, connection: Connection, name: str) -> Held:
        held = almanac.hold(connection, name, wait=True)
        if held is None:
            raise self._unknown(name)
        return held

    def _pause(self, name: str, *, paused: bool) -> Schedule:
        def once() -> Schedule:
            with self.database.transaction() as connection:
                held = self._hold(connection, name)
                table = held.schedule.timetable
                row = _place(table, name, None if paused else table.first(held.now))
                almanac.ask(connection, "pause", name=name, paused=paused, **row)
                return self._one(connection, name)

        return self.database.again(once)

    def _unknown(self, name: str) -> NotFound:
        names = [each.name for each in self._read()]
        return NotFound(
            "schedule", name, "`trellis schedules` lists them" + choices(name, names, "there are")
        )


def apply_declared(schedules: Schedules) -> list[Schedule]:
    """Make the database's schedules what the modules of this process declare with `Workflow.schedule`."""
    return [schedules.apply(declared) for declared in registry.schedules.values()]


def _table(content: Mapping[str, Any]) -> Timetable:
    return Timetable(*(content[field] for field in ("cron", "every", "timezone", "anchor", "jitter")))


def _change(
    connection: Connection,
    held: Held,
    content: dict[str, Any],
    row: dict[str, Any],
    *,
    counts_on: bool,
    replace: bool,
) -> None:
    """Give a schedule its new content; its place in time stays where its timetable is the same.

    `counts_on`: an interval goes on counting from where it began.
    """
    old = held.schedule
    if counts_on:
        content = {**content, "anchor": old.anchor}
    if all(getattr(old, field) == value for field, value in content.items()):
        return
    if not replace:
        raise ConflictError(
            f"there is another schedule {old.name!r}, of workflow {old.workflow!r}: give this one another name, or "
            "say replace=True (--replace)"
        )
    table = _table(content)
    tick = old.next_at if table == old.timetable else table.first(held.now)
    place = _place(table, old.name, tick)
    almanac.ask(connection, "replace", **{**row, **content, **place, "params": row["params"]})
