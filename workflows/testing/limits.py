"""Limits, said plainly: places, lines, turns and slots.

The law: a function does what the statement of its name in sql/limits.sql does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from ..admission import SQL
from ..gates import PREFIX, RATE, RUNS, first_line
from .counterparts import Rows, does
from .steps import OPEN, options_of, patience, ready
from .store import Row, Store


@does(SQL["turn"])
def turn(store: Store) -> Rows:
    """Nobody else is here."""
    return [("off", None)]


@does(SQL["leave"])
def leave(store: Store, *, run: Sequence[str], idx: Sequence[int]) -> None:
    """Takes the places of these steps away."""
    for each, place in zip(run, idx, strict=True):
        for row in store.where("permit", run_id=each, idx=place):
            store.delete("permit", row)


def _is_held(store: Store, place: Row) -> bool:
    if place["idx"] < 0:
        run = store.get("run", place["run_id"])
        return run is not None and run["state"] in OPEN
    step = store.get("step", place["run_id"], place["idx"])
    if step is None:
        return False
    waits_for = step["waits_for"] or ""
    in_line = step["state"] == "parked" and (waits_for.startswith(PREFIX) or waits_for == "pause")
    return step["state"] in ("ready", "running", "parked") and not in_line


@does(SQL["forget"])
def forget(store: Store, *, lines: Sequence[str]) -> None:
    """Places in these gates whose holder is over."""
    for row in store.all("permit"):
        if row["gate"] in lines and not _is_held(store, row):
            store.delete("permit", row)


@does(SQL["forget_some"])
def forget_some(store: Store, *, after: str, run: str, idx: int, limit: int) -> Rows:
    """All places here: there are few."""
    for row in store.all("permit"):
        if not _is_held(store, row):
            store.delete("permit", row)
    return []


@does(SQL["cursor"])
def cursor(store: Store, *, name: str) -> Rows:
    """Where the last sweep ended."""
    row = store.get("gate", name)
    return [] if row is None else [(row["turn"],)]


@does(SQL["remember"])
def remember(store: Store, *, name: str, at: str | None) -> None:
    """Where this sweep ended."""
    row = store.get("gate", name) or store.insert("gate", name=name)
    assert row is not None
    store.update("gate", row, turn=at)


def _waiting(store: Store, line: str) -> list[Row]:
    found = store.where("step", state="parked", waits_for=line)
    return sorted(found, key=lambda step: (-step["priority"], step["run_id"], step["idx"]))


def _wait(store: Store, line: str, moment: datetime) -> float:
    gate = store.get("gate", line)
    if gate is None or gate["next_at"] is None:
        return 0.0
    return float(max(0.0, (gate["next_at"] - moment).total_seconds()))


def _room(step: Row, line: str, used: int, wait: float, horizon: float) -> int:
    options = options_of(step)
    if line.startswith(RATE):
        _, count, per = options["rate"]
        slots: int = math.ceil((horizon - wait) * count / per)
        return slots
    if line.startswith(RUNS):
        return int(options["entry"][1]) - used
    return int(max((limit for gate, limit in options["gates"] if gate == line), default=0)) - used


def _in_turn(store: Store, line: str, room: int) -> list[Row]:
    """One of each tenant after the other, beginning behind the one that was last."""
    gate = store.get("gate", line)
    last = (gate["turn"] if gate is not None else None) or ""
    every = _waiting(store, line)
    tenants = sorted({step["fair"] for step in every}, key=lambda fair: (fair <= last, fair))[:room]
    share = math.ceil(room / len(tenants)) if tenants else 0
    shares = [
        sorted((step for step in every if step["fair"] == fair), key=_longest)[:share] for fair in tenants
    ]
    return [own[nth] for nth in range(share) for own in shares if nth < len(own)]


def _longest(step: Row) -> tuple[Any, ...]:
    rank = step["rank"]
    return (-step["priority"], step["run_id"], rank is None, -(rank or 0.0), step["idx"])


@does(SQL["look"])
def look(store: Store, *, lines: Sequence[str], batch: int, horizon: float, window: int) -> Rows:
    """The gates with those whose turn it is."""
    moment = store.clock.now()
    answer: Rows = []
    for line in sorted(lines):
        used, wait = len(store.where("permit", gate=line)), _wait(store, line, moment)
        first = min(_waiting(store, line), key=lambda step: step["fair"], default=None)
        room = 0 if first is None else min(batch, _room(first, line, used, wait, horizon))
        found = _in_turn(store, line, room) if room > 0 else []
        for step in found:
            options = options_of(step)
            named = [options.get(name) for name in ("gates", "rate", "entry")]
            row = store.get("run", step["run_id"])
            paused = row is not None and row["state"] == "paused"
            answer.append(
                (line, used, wait, moment, step["run_id"], step["idx"], step["fair"], *named, paused)
            )
        if not found:
            answer.append((line, used, wait, moment, *[None] * 7))
    return answer


@does(SQL["counts"])
def counts(store: Store, *, lines: Sequence[str], moment: datetime) -> Rows:
    """Gates alone."""
    return [(line, len(store.where("permit", gate=line)), _wait(store, line, moment)) for line in lines]


def _let_in(store: Store, step: Row, line: str | None, due: datetime) -> Row:
    late = patience(step, due) if line is None else None
    state = "ready" if line is None else "parked"
    return store.update("step", step, state=state, waits_for=line, sent=True, due_at=due, lease_until=late)


def _workflow(store: Store, run: str) -> Any:
    row = store.get("run", run)
    return None if row is None else row["workflow"]


@does(SQL["enter"])
def enter(store: Store, *, run: Sequence[str], idx: Sequence[int], line: Sequence[str]) -> Rows:
    """Runs that may begin: their roots go on to their own limits, or are ready."""
    answer: Rows = []
    for each, place, gate in zip(run, idx, line, strict=True):
        store.insert("permit", gate=gate, run_id=each, idx=-1)
        roots = [*store.where("step", run_id=each, idx=place), *_waiting(store, f"entry:{each}")]
        for step in roots:
            if step["state"] == "parked":
                own = first_line(options_of(step))
                step = _let_in(store, step, own, store.clock.now())
                answer.append((each, _workflow(store, each), *ready(step), own))
    return answer


@does(SQL["admit"])
def admit(
    store: Store,
    *,
    run: Sequence[str],
    idx: Sequence[int],
    line: Sequence[str | None],
    delay: Sequence[float],
    moment: datetime,
    names: Sequence[str],
    turns: Sequence[str | None],
    slots: Sequence[float | None],
) -> Rows:
    """Steps that are let in hold their places and are ready; others change their line."""
    answer: Rows = []
    for each, place, to, late in zip(run, idx, line, delay, strict=True):
        step = store.get("step", each, place)
        if step is None or step["state"] != "parked":
            continue
        step = _let_in(store, step, to, moment + timedelta(seconds=late))
        if to is None:
            for gate, _ in options_of(step).get("gates", ()):
                store.insert("permit", gate=gate, run_id=each, idx=place)
            answer.append((each, _workflow(store, each), *ready(step), late))
    for name, last, slot in zip(names, turns, slots, strict=True):
        row = store.get("gate", name) or store.insert("gate", name=name)
        assert row is not None
        next_at = row["next_at"] if slot is None else moment + timedelta(seconds=slot)
        store.update("gate", row, turn=row["turn"] if last is None else last, next_at=next_at)
    return answer


@does(SQL["lines"])
def lines(store: Store, *, after: str, limit: int) -> Rows:
    """The gates that somebody waits for."""
    found = {step["waits_for"] or "" for step in store.where("step", state="parked")}
    return [(line,) for line in sorted(found) if line.startswith(PREFIX) and line > after][:limit]


@does(SQL["pace"])
def pace(store: Store, *, name: str, interval: float) -> Rows:
    """The next start under a rate, in seconds from now."""
    now = store.clock.now()
    row = store.get("gate", name) or store.insert("gate", name=name)
    assert row is not None
    begins = max(row["next_at"] or now, now)
    store.update("gate", row, next_at=begins + timedelta(seconds=interval))
    return [((begins - now).total_seconds(),)]


@does(SQL["take_overdue"])
def take_overdue(store: Store, *, lease: str, limit: int) -> Rows:
    """Takes ready steps that nobody claimed in time."""
    now = store.clock.now()
    answer: Rows = []
    late = [
        s
        for s in store.where("step", state="ready")
        if s["lease_until"] is not None and s["lease_until"] <= now
    ]
    for step in sorted(late, key=lambda step: step["lease_until"])[:limit]:
        run = store.get("run", step["run_id"])
        if run is None or run["state"] not in ("pending", "running"):
            continue
        if run["state"] == "pending":
            run = store.update("run", run, state="running", started_at=now)
        until, attempt = now + timedelta(seconds=15), step["attempt"] + 1
        step = store.update(
            "step", step, state="running", attempt=attempt, lease=lease, lease_until=until, started_at=now,
            worker="tick", suspect=False,
        )  # fmt: skip
        plain = [step[name] for name in ("idx", "name", "attempt", "failures")]
        answer.append((step["run_id"], run["workflow"], *plain, options_of(step), "tick", 0.0))
    return answer


@does(SQL["late_runs"])
def late_runs(store: Store, *, limit: int) -> Rows:
    """Runs that are not over at their deadline."""
    now = store.clock.now()
    runs = [run for state in OPEN for run in store.where("run", state=state)]
    late = [run for run in runs if run["deadline_at"] is not None and run["deadline_at"] <= now]
    late.sort(key=lambda run: run["deadline_at"])
    return [(run["id"], (run["deadline_at"] - run["created_at"]).total_seconds()) for run in late[:limit]]
