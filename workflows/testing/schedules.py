"""Schedules, said plainly: rows that say when the next run begins.

The law: a function does what the statement of its name in sql/schedules.sql does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ..almanac import SQL
from .counterparts import Rows, does
from .steps import OPEN, seconds_from
from .store import Row, Store, jsonb, of_json

_COLUMNS = (
    "name", "workflow", "definition", "params", "cron", "every", "timezone", "anchor", "jitter", "overlap", "catch_up",
    "tick_param", "paused", "next_at", "last_at", "last_run", "queued", "started", "skipped", "missed_at", "problem",
)  # fmt: skip


def _shown(row: Row) -> tuple[object, ...]:
    return tuple(of_json(row[name]) if name == "params" else row[name] for name in _COLUMNS)


def _named(store: Store, name: str) -> Row:
    return store.where("schedule", name=name)[0]


def _open(store: Store, runs: Sequence[str]) -> list[str]:
    found = [store.get("run", str(each)) for each in runs]
    return [row["id"] for row in found if row is not None and row["state"] in OPEN]


def _ticks(store: Store, name: str) -> list[Row]:
    return sorted(store.where("schedule_tick", schedule=name), key=lambda row: row["tick"])


@does(SQL["lock"])
@does(SQL["take"])
def lock(store: Store, *, name: str) -> Rows:
    """A schedule, with its runs and the time."""
    row = store.get("schedule", name)
    return [] if row is None else [(*_shown(row), row["running"], store.clock.now())]


@does(SQL["one"])
def one(store: Store, *, name: str) -> Rows:
    """A schedule."""
    row = store.get("schedule", name)
    return [] if row is None else [_shown(row)]


@does(SQL["read"])
def read(store: Store) -> Rows:
    """All schedules, by name."""
    return [_shown(row) for row in sorted(store.all("schedule"), key=lambda row: str(row["name"]))]


@does(SQL["read_of"])
def read_of(store: Store, *, workflow: str) -> Rows:
    """The schedules of a workflow, by name."""
    found = store.where("schedule", workflow=workflow)
    return [_shown(row) for row in sorted(found, key=lambda row: str(row["name"]))]


@does(SQL["due"])
def due(store: Store, *, limit: int) -> Rows:
    """Schedules whose next tick is due, or whose queued ticks have their turn."""
    now = store.clock.now()
    rows = store.all("schedule")
    found = [row for row in rows if row["due_at"] is not None and row["due_at"] <= now and not row["paused"]]
    found.sort(key=lambda row: row["due_at"])
    names = [row["name"] for row in found[:limit]]
    for row in rows:
        by_hand = any(tick["by_hand"] for tick in _ticks(store, row["name"]))
        free = row["overlap"] == "allow" or not _open(store, row["running"])
        if row["queued"] > 0 and (not row["paused"] or by_hand) and free:
            names.append(row["name"])
    return [(name,) for name in dict.fromkeys(names)]


@does(SQL["doomed"])
def doomed(store: Store, *, name: str) -> Rows:
    """The open runs of a schedule whose next tick is due and ends them."""
    row = _named(store, name)
    late = row["due_at"] is not None and row["due_at"] <= store.clock.now()
    if not late or row["paused"] or row["overlap"] != "cancel":
        return []
    return [(run,) for run in _open(store, row["running"])]


@does(SQL["open"])
def still_open(store: Store, *, running: Sequence[str]) -> Rows:
    """Those of these runs that are not over."""
    return [(run,) for run in _open(store, running)]


@does(SQL["insert"])
def insert(store: Store, *, name: str, params: str, **columns: object) -> Rows:
    """A new schedule."""
    row = store.insert("schedule", name=name, params=jsonb(params), **columns)
    return [] if row is None else [(name,)]


@does(SQL["replace"])
def replace(store: Store, *, name: str, params: str, **columns: object) -> None:
    """Another one under its name."""
    store.update("schedule", _named(store, name), params=jsonb(params), problem=None, **columns)


@does(SQL["move"])
def move(
    store: Store,
    *,
    name: str,
    next_at: datetime | None,
    due_at: datetime | None,
    running: Sequence[str],
    last_at: datetime | None,
    last_run: str | None,
    started: int,
    skipped: int,
    missed_at: datetime | None,
) -> None:
    """What a tick has decided."""
    row = _named(store, name)
    store.update(
        "schedule",
        row,
        next_at=next_at,
        due_at=due_at,
        running=list(running),
        problem=None,
        queued=len(_ticks(store, name)),
        last_at=last_at or row["last_at"],
        last_run=last_run or row["last_run"],
        started=row["started"] + started,
        skipped=row["skipped"] + skipped,
        missed_at=missed_at or row["missed_at"],
    )


@does(SQL["triggered"])
def triggered(store: Store, *, name: str, run: str, running: Sequence[str]) -> None:
    """A run by hand."""
    row = _named(store, name)
    store.update("schedule", row, started=row["started"] + 1, last_run=run, running=[*running, run])


@does(SQL["fail"])
def fail(store: Store, *, name: str, problem: str, seconds: float) -> None:
    """A tick that cannot start its run stays due."""
    store.update("schedule", _named(store, name), problem=problem, due_at=seconds_from(store, seconds))


@does(SQL["pause"])
def pause(
    store: Store, *, name: str, paused: bool, next_at: datetime | None, due_at: datetime | None
) -> Rows:
    """It stops, or goes on with the next tick from now."""
    row = _named(store, name)
    if row["paused"] == paused:
        return []
    later = {"next_at": next_at or row["next_at"], "due_at": due_at or row["due_at"]}
    store.update("schedule", row, paused=paused, **later)
    return [(name,)]


@does(SQL["delete"])
def delete(store: Store, *, name: str) -> Rows:
    """With its queue."""
    row = store.get("schedule", name)
    if row is None:
        return []
    for tick in _ticks(store, name):
        store.delete("schedule_tick", tick)
    store.delete("schedule", row)
    return [(name,)]


@does(SQL["queue"])
def queue(store: Store, *, name: str, ticks: Sequence[datetime], by_hand: bool) -> Rows:
    """Ticks that wait for their turn."""
    new = [store.insert("schedule_tick", schedule=name, tick=tick, by_hand=by_hand) for tick in ticks]
    return [(row["tick"],) for row in new if row is not None]


@does(SQL["unqueue"])
def unqueue(store: Store, *, name: str, paused: bool, limit: int) -> Rows:
    """The oldest of them; while it is paused only those that a person has put there."""
    found = [tick for tick in _ticks(store, name) if tick["by_hand"] or not paused][:limit]
    for tick in found:
        store.delete("schedule_tick", tick)
    return [(tick["tick"],) for tick in found]


@does(SQL["count_queue"])
def count_queue(store: Store, *, name: str) -> None:
    """How many they are."""
    store.update("schedule", _named(store, name), queued=len(_ticks(store, name)))
