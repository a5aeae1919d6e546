"""What must hold when a case is over: the ledger outside and the journal against the program's model.

The law: every check names what it found. The journal's own history is kept by triggers that the suite adds to its
database, so a state that was wrong for a moment is seen as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import psycopg

from trellis.workflows.states import STEP_ENDS, STEP_MOVES, StepState

from .ledger import Line
from .programs import ANY, CHILD, ONCE, VOTERS, Expected, Program, model

HISTORY = """
CREATE TABLE chaos_history (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
                            run_id uuid, idx int, name text, source text, target text, attempt int);
CREATE TABLE chaos_book (run_id uuid, step text);
CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_history (run_id, idx, name, source, target, attempt)
    VALUES (NEW.run_id, NEW.idx, NEW.name, OLD.state, NEW.state, NEW.attempt);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER UPDATE ON step FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION chaos_note();
"""
_AWAKE = 0.5  # seconds for all processes of a stopped worker to go on, on a busy machine
_STEPS = """
SELECT name, state, result, missing, attempt, lease IS NOT NULL AND state <> 'cancelled', failures
  FROM step WHERE run_id = %s ORDER BY idx
"""
_MOVES = """
SELECT idx, name, source, target, extract(epoch FROM at)::float8 FROM chaos_history WHERE run_id = %s ORDER BY id
"""


def check(
    connection: psycopg.Connection[Any],
    run: str,
    program: Program,
    base: int,
    ledger: Mapping[str, Sequence[Line]],
    pauses: Sequence[Pause] = (),
) -> Iterator[str]:
    """Everything that is wrong with a run that should be over, and with its child runs."""
    fails = program.fails(base)
    lines = ledger.get(run, [])
    rows = connection.execute(_STEPS, [run]).fetchall()
    steps = {row[0]: row[1:] for row in rows}
    expected = model(program, base)
    yield from _end(connection, run, fails)
    if len(steps) != len(rows):
        yield "two rows have the same name"
    if fails is None:
        yield from _ends(steps, expected)
    else:
        yield from _failed(steps, expected, program)
    yield from _effects(steps, expected, lines, everything=fails is None)
    yield from moves(connection, run, lines, pauses)
    yield from _tidy(steps)
    yield from _once(connection, run, program, steps, lines)
    yield from _children(connection, run, program if fails is None else None, steps, ledger)
    yield from _elsewhere(connection, run, program, steps, ledger)
    yield from _undone(connection, run, program, steps, ledger, failed=fails is not None)
    yield from _approved(program, steps)


def check_cancelled(
    connection: psycopg.Connection[Any],
    run: str,
    program: Program,
    base: int,
    ledger: Mapping[str, Sequence[Line]],
    pauses: Sequence[Pause] = (),
) -> Iterator[str]:
    """Everything that is wrong with a run that somebody has cancelled, if it was not over by then."""
    [(state,)] = connection.execute("SELECT state FROM run WHERE id = %s", [run]).fetchall()
    if state != "cancelled":
        yield from check(connection, run, program, base, ledger, pauses)
        return
    lines = ledger.get(run, [])
    steps = {row[0]: row[1:] for row in connection.execute(_STEPS, [run]).fetchall()}
    yield from moves(connection, run, lines, pauses)
    yield from _tidy(steps)
    yield from _once(connection, run, program, steps, lines)
    yield from _children(connection, run, None, steps, ledger)


def _undone(
    connection: psycopg.Connection[Any],
    run: str,
    program: Program,
    steps: Mapping[str, Any],
    ledger: Mapping[str, Sequence[Line]],
    *,
    failed: bool,
) -> Iterator[str]:
    """What the finished steps of a failed run did is undone, the latest first, by one run; nothing else is."""
    ended = connection.execute("SELECT name, finished_at, idx FROM step WHERE run_id = %s", [run]).fetchall()
    at = {name: (when, idx) for name, when, idx in ended}
    wanted = [name for name in program.undone if failed and steps[name][0] == "succeeded"]
    wanted.sort(key=lambda name: at[name], reverse=True)
    found = connection.execute("SELECT id::text, state FROM run WHERE origin = %s", [run]).fetchall()
    if len(found) != bool(wanted):
        yield f"{wanted} are to be undone, and {len(found)} runs do that"
    for undoing, state in found:
        rows = connection.execute(
            "SELECT name FROM step WHERE run_id = %s AND name LIKE 'un%%' ORDER BY idx", [undoing]
        ).fetchall()
        if state != "succeeded" or [name for (name,) in rows] != [f"un{name}" for name in wanted]:
            yield f"run {undoing} undoes {rows}, and should undo {wanted}: it {state}"
        done = {line.step for line in ledger.get(undoing, []) if line.kind == "effect"}
        if done != {f"un{name}" for name in wanted}:
            yield f"run {undoing} had the effects {sorted(done)}"


def _approved(program: Program, steps: Mapping[str, Any]) -> Iterator[str]:
    """An approval went on with as many voices as it needs."""
    for node in program.nodes:
        if node.kind == "approval" and steps[node.name][0] == "succeeded":
            by = steps[node.name][1]["by"]
            if len(set(by)) < node.options["needed"] or not set(by) <= set(VOTERS):
                yield f"{node.name} went on with the voices of {by}"


def _once(
    connection: psycopg.Connection[Any],
    run: str,
    program: Program,
    steps: Mapping[str, Any],
    lines: Sequence[Line],
) -> Iterator[str]:
    """Effects of class `once` never twice; what commits with the step as often as the step: once."""
    rows = connection.execute("SELECT step, count(*) FROM chaos_book WHERE run_id = %s GROUP BY step", [run])
    book = dict(rows.fetchall())
    for node in program.nodes:
        if node.kind not in ONCE:
            continue
        happened = sum(line.kind == "effect" and line.step == node.name for line in lines)
        count = book.get(node.name, 0) if node.kind == "booked" else happened
        done = steps[node.name][0] == "succeeded"
        if count > 1 or (done and count != 1) or (node.kind == "booked" and count and not done):
            yield f"{node.name} is {steps[node.name][0]}, and its effect happened {count} times"


def _elsewhere(
    connection: psycopg.Connection[Any],
    run: str,
    program: Program,
    steps: Mapping[str, Any],
    ledger: Mapping[str, Sequence[Line]],
) -> Iterator[str]:
    """Tasks of the other application: it knows no runs, so its lines stand under the run's tag."""
    [(tag,)] = connection.execute("SELECT params ->> 'tag' FROM run WHERE id = %s", [run]).fetchall()
    for node in program.nodes:
        if node.kind == "foreign" and steps[node.name][0] == "succeeded":
            ids = {
                line.key for line in ledger.get(tag, []) if line.step == node.name and line.kind == "effect"
            }
            # Under another id only where Celery itself has reported a failure of the task.
            if not 1 <= len(ids) <= 1 + steps[node.name][5]:
                yield f"{node.name} had its effect elsewhere under {len(ids)} ids"


def _children(
    connection: psycopg.Connection[Any],
    run: str,
    program: Program | None,
    steps: Mapping[str, Any],
    ledger: Mapping[str, Sequence[Line]],
) -> Iterator[str]:
    """Child runs, one for each such step; those of a run that failed (no program) are merely over."""
    found = connection.execute("SELECT id, params FROM run WHERE parent_run = %s", [run]).fetchall()
    if program is not None:
        children = [node.name for node in program.nodes if node.kind == "child"]
        wanted = [name for name in children if steps[name][0] == "succeeded"]
        if len(found) != len(wanted):
            yield f"{len(wanted)} steps are child runs, and there are {len(found)}"
    for child, params in found:
        if program is not None:
            problems = check(connection, str(child), CHILD, params["base"], ledger)
        else:
            problems = moves(connection, str(child), ledger.get(str(child), []))
        for problem in problems:
            yield f"child run {child}: {problem}"


def _end(connection: psycopg.Connection[Any], run: str, fails: str | None) -> Iterator[str]:
    found = connection.execute("SELECT state, missing, steps, error FROM run WHERE id = %s", [run]).fetchone()
    if found is None:
        yield "the run is gone"
        return
    state, missing, steps, error = found
    wanted = "succeeded" if fails is None else "failed"
    if state != wanted:
        yield f"the run {state} and should have {wanted} ({error})"
    if state == "succeeded" and missing != 0:
        yield f"the run succeeded while {missing} steps were missing"
    if fails is not None and (error or {}).get("step") != fails:
        yield f"the run failed with {error}, not with {fails}"
    [(count,)] = connection.execute("SELECT count(*) FROM step WHERE run_id = %s", [run]).fetchall()
    if count != steps:
        yield f"the run counts {steps} steps and has {count}"


def _ends(steps: Mapping[str, Any], expected: Mapping[str, Expected]) -> Iterator[str]:
    if steps.keys() != expected.keys():
        yield f"rows that should not be, or are not there: {sorted(steps.keys() ^ expected.keys())}"
    for name in steps.keys() & expected.keys():
        state, result, missing, *_ = steps[name]
        want = expected[name]
        if state not in want.states:
            yield f"{name} {state}, and should have {'/'.join(sorted(want.states))}"
        elif want.value is not ANY and result != want.value:
            yield f"{name} gave {result!r}, and should have given {want.value!r}"
        if missing != 0:
            yield f"{name} is over while {missing} parents are missing"


def _failed(steps: Mapping[str, Any], expected: Mapping[str, Expected], program: Program) -> Iterator[str]:
    """A run that failed: what the failed step needed is as foretold, the rest is merely over."""
    parents = {node.name: node.parents for node in program.nodes}
    assert program.fatal is not None
    needed, open_ = set(), [program.fatal]
    while open_:
        name = open_.pop()
        needed.add(name)
        open_ += [parent for parent in parents[name] if parent not in needed]
    for name in needed:
        if name not in steps or steps[name][0] not in expected[name].states:
            yield f"{name}, which the failed step needed, is {steps.get(name, ('not there',))[0]}"


def _effects(
    steps: Mapping[str, Any], expected: Mapping[str, Expected], lines: Sequence[Line], *, everything: bool
) -> Iterator[str]:
    effects: dict[str, int] = defaultdict(int)
    keys: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        keys[line.step].add(line.key)
        effects[line.step] += line.kind == "effect"
        if line.step not in steps:
            yield f"{line.step} left a line and has no row"
        elif line.attempt > steps[line.step][3]:
            yield f"{line.step} ran an attempt {line.attempt}, of which the journal knows {steps[line.step][3]}"
    for name, found in keys.items():
        if len(found) != 1:
            yield f"{name} had the idempotency keys {sorted(found)}"
    if len(set().union(*keys.values())) != len(keys):
        yield "two steps had the same idempotency key"
    for name, want in expected.items():
        succeeded = name in steps and steps[name][0] == "succeeded"
        if (everything or succeeded) and effects[name] < want.effects:
            yield f"the effect of {name} is missing"
        if succeeded and want.states > {"succeeded"} and not effects[name] and want.value is ANY:
            yield f"{name} succeeded without its effect"


class Pause(NamedTuple):
    """A worker that was stopped: which process at the point, and when all of it went on."""

    pid: int
    group: int
    until: float  # seconds since the epoch


def moves(
    connection: psycopg.Connection[Any], run: str, lines: Sequence[Line], pauses: Sequence[Pause] = ()
) -> Iterator[str]:
    """States that changed as they may not, and bodies that began after their step was finished.

    A worker looks whether a step is still its own right before it begins the body. If it is stopped in the tenth of a
    millisecond between the two, it begins too late, and nothing can be done about it: that is allowed to the other
    processes of a worker that was stopped as a whole, at the moment in which it goes on.
    """
    finished: dict[str, float] = {}
    for idx, name, source, target, at in connection.execute(_MOVES, [run]).fetchall():
        if StepState(target) not in STEP_MOVES[StepState(source)]:
            yield f"{name} ({idx}) went from {source} to {target}"
        if StepState(target) in STEP_ENDS and target != "cancelled":
            finished[name] = at
    for line in lines:
        late = line.at - finished.get(line.step, line.at)
        if line.kind == "begin" and late > 0 and not any(_woke_up(line, each) for each in pauses):
            yield f"{line.step} began attempt {line.attempt} {late:.3f} s after it was finished"


def _woke_up(line: Line, paused: Pause) -> bool:
    if line.group != paused.group or line.pid == paused.pid:
        return False
    return 0 <= line.at - paused.until < _AWAKE


def _tidy(steps: Mapping[str, Any]) -> Iterator[str]:
    for name, (state, _, _, _, leased, _) in steps.items():
        if StepState(state) not in STEP_ENDS:
            yield f"{name} is still {state}"
        if leased:
            yield f"{name} is {state} and leased"
