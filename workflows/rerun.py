"""Runs that repeat another one, with its finished results where they still hold.

The law: a rerun is a run of its own, of the definition that the old one kept. A step is reused whole (with the items
of its map, with what it appended) or computed again whole. It is reused only if it is finished in the old run,
nothing that goes into it has changed, and all its parents are reused: what is reused never runs again. Everything that
can be refused is refused before the first row is written; results are copied by Postgres and do not pass here. It
stands in line before limits like any new run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..tasks.database import Connection, Database
from ..tasks.errors import DefinitionError, NotFound, StateError
from ..tasks.hints import choices
from ..tasks.settings import Settings
from ..tasks.vault import HIDDEN
from . import gates, graph, launch, registry, secret, wire
from .compensation import KIND as COMPENSATION
from .compensation import WAITS
from .control import Moved, ask, locked, tell
from .definition import Workflow
from .lenient import Lenient
from .literals import encode
from .parameters import check_params
from .plan import GATHER_SUFFIX, PlannedStep, plan
from .queries import Queries
from .records import Json, Ready, Run
from .spec import StepSpec, WorkflowSpec
from .states import RunState, StepState

KIND = "rerun"  # of the link to the run that is repeated
_DONE = frozenset({StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED})
_ROOT = re.compile(
    r"[^.\[]+"
)  # of `each[3].part` it is `each`: steps that a run has grown are called after their root


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to repeat, and what to change."""

    from_step: str | None = None
    params: Mapping[str, Json] | None = None
    inputs: Mapping[str, Mapping[str, Json]] | None = None


class Row(NamedTuple):
    """A step of the old run."""

    idx: int
    name: str
    state: StepState
    fatal: bool  # the run did not survive it

    @property
    def root(self) -> str:
        """The step of the definition that it belongs to."""
        found = _ROOT.match(self.name)
        return found[0] if found else self.name


class Prepared(NamedTuple):
    """A rerun that only has to be written."""

    run: str
    old: Run
    row: dict[str, Any]
    reused: list[int]
    again: list[int]
    changed: str  # JSON: what edits have made of some of `again`
    steps: int  # of the definition that are reused
    from_step: str | None
    entry: tuple[str, int] | None  # the line in which the run waits for its turn, and how many may have it
    own: bool  # whether its steps have a line of their own


def prepare(queries: Queries, database: Database, settings: Settings, old: Run, wanted: Wanted) -> Prepared:
    """Check everything, and decide what is reused.

    Raises NotFound for an unknown step, ParameterError, DefinitionError for inputs that do not fit, StateError where
    the run is open, undoes another one, or nothing of it would be computed again.
    """
    _check_origin(old)
    with database.connection() as connection:
        [(_, _, edits, hooks, count, tenant)] = ask(connection, "read_origin", run=old.id)
        found = [Row(idx, name, StepState(state), fatal)
                 for idx, name, state, fatal in ask(connection, "read_steps", run=old.id)]  # fmt: skip
        undone = _undone(connection, old, hooks)
    if HIDDEN in old.params.values():  # what a record shows is not what the run has
        old = replace(old, params=queries.params(old.id))
    spec = ordered(WorkflowSpec.model_validate(queries.definition(old.definition)), found, hooks or {})
    _check_steps(spec, [*(wanted.inputs or {}), *([] if wanted.from_step is None else [wanted.from_step])])
    _check_secrets(spec, wanted.inputs or {})
    before = edited(spec, edits or {})
    edits_now = _merged(edits or {}, wanted.inputs or {})
    after = edited(spec, edits_now)
    scope = gates.Scope(old.id, _given(spec, old, tenant), settings.fair_window)
    workflow = Workflow.from_spec(after, catalogue=Lenient())
    params = _params(workflow.spec, old, wanted, settings)
    text = launch.params_text(spec.name, params, settings.value_max_bytes)
    new = plan(workflow.spec, params, Lenient(), settings.default_queue, scope=scope)
    planned = new.steps
    _check_layout(old, planned, found)
    changed: dict[int, dict[str, Json]] = {}
    if wanted.params or wanted.inputs:
        was = plan(before, old.params, Lenient(), settings.default_queue, scope=scope).steps
        changed = _changed(database, old, was, planned, params)
    again = recomputed(spec, found, {planned[idx].name for idx in changed}, undone, wanted.from_step)
    if not again:
        raise StateError(
            f"run {old.id} succeeded, so nothing of it would be computed again: say from which step, or what to change"
        )
    reused = [row.idx for row in found if row.root not in again]
    grown = any(row.idx >= len(planned) and row.root not in again for row in found)
    fresh = [step.idx for step in planned if _root(step.name) in again]
    run = launch.new_id()
    row = {
        "run": run,
        "origin": old.id,
        "params": text,
        "tenant": new.tenant,
        "gates": new.gates,
        "steps": count if grown else len(planned),
        "missing": sum(1 for idx in fresh if not planned[idx].dependents),
        "edits": wire.dumps(edits_now) if edits_now else None,
        "hooks": _hooks(hooks, new.undo, edited=bool(wanted.params or wanted.inputs)),
    }
    for idx in fresh:
        if planned[idx].name.endswith(GATHER_SUFFIX):  # what it was told of the rows that it gathers is over
            changed.setdefault(idx, _overlay(planned[idx]))
    overlay = wire.dumps(list(changed.values()))
    entry = (new.gates[0], spec.limit or 1) if new.gates else None
    own = spec.max_parallel is not None
    kept_steps = len(spec.steps) - len(again)
    return Prepared(run, old, row, reused, fresh, overlay, kept_steps, wanted.from_step, entry, own)


def _check_origin(old: Run) -> None:
    if not old.finished:
        raise StateError(
            f"run {old.id} is {old.state}: a rerun begins where a run has ended, so cancel it first"
        )
    if old.origin_kind == COMPENSATION:
        raise StateError(
            f"run {old.id} undoes run {old.origin}, and is no workflow of its own: retry it instead"
        )


def _params(spec: WorkflowSpec, old: Run, wanted: Wanted, settings: Settings) -> dict[str, Json]:
    """The old parameters with the changes; what is secret among those is encrypted now."""
    changes = wanted.params or {}
    params = check_params(spec, {**old.params, **changes}, ours=True)
    return params | secret.sealed({name: params[name] for name in changes}, spec.params, settings, spec.name)


def _changed(
    database: Database,
    old: Run,
    was: Sequence[PlannedStep],
    planned: Sequence[PlannedStep],
    params: Mapping[str, Json],
) -> dict[int, dict[str, Json]]:
    """By row, what the edits and the new parameters change of a step; the old run's own options stand below them."""
    names = {name for name in params if params[name] != old.params.get(name)}
    changed = differences(was, planned, names)
    with database.connection() as connection:
        kept = dict(ask(connection, "read_options", run=old.id, idx=list(changed)))
    for idx, each in changed.items():
        each["options"] = merged(was[idx].options, planned[idx].options, kept[idx]) or {}
    return changed


def write(connection: Connection, prepared: Prepared, *, sent: bool) -> Moved:
    """Insert the rerun, inside a transaction. Raises StateError where the old run has moved since it was read."""
    run, old = prepared.run, prepared.old
    workflow, state, _ = locked(connection, old.id)
    [(_, finished_at, *_)] = ask(connection, "read_origin", run=old.id)
    if state is not old.state or finished_at != old.finished_at:
        raise StateError(f"run {old.id} is {state} by now: somebody has opened it again")
    ask(connection, "plan_whole")
    ask(connection, "open_rerun", **prepared.row)
    ask(connection, "copy_reused", run=run, origin=old.id, idx=prepared.reused)
    rows = ask(
        connection,
        "copy_again",
        run=run,
        origin=old.id,
        idx=prepared.again,
        changed=prepared.changed,
        sent=sent,
        own=prepared.own,
    )
    lines = frozenset(line for *_, line in rows if line is not None)
    ready = [Ready._make((*row, False, 0.0)) for *row, line in rows if line is None]
    if prepared.entry is not None:
        line, limit = prepared.entry
        ask(connection, "line_up", run=run, tenant=prepared.row["tenant"], line=line, limit=limit)
        lines, ready = frozenset([line]), []
    detail = {"origin": old.id, "from": prepared.from_step, "reused": prepared.steps}
    tell(connection, run, "run.rerun", None, detail)
    return Moved(workflow, RunState.PENDING, len(rows), ready, lines)


# --- pure


def ordered(spec: WorkflowSpec, rows: Iterable[Row], hooks: Mapping[str, Json]) -> WorkflowSpec:
    """The definition with its steps in the order in which they were planned, which Postgres has not kept."""
    place = {row.name: row.idx for row in rows}
    planned = hooks.get("compensation") or {}
    undo = {
        end: {row["name"]: turn for turn, row in enumerate(planned.get(end) or [])}
        for end in ("failed", "cancelled")
    }

    def sort(steps: Mapping[str, Any], places: Mapping[str, int]) -> dict[str, Any]:
        return dict(sorted(steps.items(), key=lambda each: places.get(each[0], len(places))))

    return spec.model_copy(
        update={
            "steps": sort(spec.steps, place),
            "on_failure": sort(spec.on_failure, undo["failed"]),
            "on_cancel": sort(spec.on_cancel, undo["cancelled"]),
        }
    )


def edited(spec: WorkflowSpec, edits: Mapping[str, Mapping[str, Json]]) -> WorkflowSpec:
    """The definition with inputs of some steps replaced. Its shape stays: who waited for a step still does."""
    if not edits:
        return spec
    steps = dict(spec.steps)
    for name, inputs in edits.items():
        old = steps[name]
        new = _with(old, inputs={**old.inputs, **inputs})
        lost = [each for each in graph.parents_of(old) if each not in graph.parents_of(new)]
        steps[name] = _with(new, after=(*new.after, *lost)) if lost else new
    return spec.model_copy(update={"steps": steps})


def _with(step: StepSpec, **fields: Any) -> StepSpec:
    return StepSpec.model_validate({**step.model_dump(exclude_defaults=True), **fields})


def differences(
    was: Sequence[PlannedStep], now: Sequence[PlannedStep], params: set[str]
) -> dict[int, dict[str, Json]]:
    """What edits have made of the rows, by id; also of those whose conditions look at the `params` that changed."""
    found: dict[int, dict[str, Json]] = {}
    mentions = re.compile(r"\bparams(?:\.|\[[\"'])(?:" + "|".join(map(re.escape, sorted(params))) + r")\b")
    for old, new in zip(was, now, strict=True):
        same = (
            old.inputs == new.inputs
            and old.bindings == new.bindings
            and old.options == new.options
            and old.fair == new.fair
        )
        if same and not (params and mentions.search(wire.dumps([new.inputs, new.options]))):
            continue
        found[new.idx] = _overlay(new)
    return found


def merged(was: Json, now: Json, kept: Json) -> Json:
    """What was kept, with the difference between two plans made in it.

    The plans of this process do not know the retries, queues and limits of actions that it does not have; what was
    kept does, and keeps them.
    """
    if was == now:
        return kept
    if isinstance(was, dict) and isinstance(now, dict) and isinstance(kept, dict):
        found = {name: each for name, each in kept.items() if name in now or name not in was}
        changed = [name for name in now if name not in was or was[name] != now[name]]
        return found | {name: merged(was.get(name), now[name], kept.get(name)) for name in changed}
    lists = isinstance(was, list) and isinstance(now, list) and isinstance(kept, list)
    if lists and len(was) == len(now) == len(kept):
        return [merged(*each) for each in zip(was, now, kept, strict=True)]
    return now


def _given(spec: WorkflowSpec, old: Run, tenant: str | None) -> str | None:
    """The tenant of the old run, where it was given and is not what the definition's `fair_key` comes to."""
    if spec.fair_key is None or tenant is None:
        return tenant
    parts = gates.known_parts(gates.template(spec.fair_key, item=False), old.params)
    return None if gates.key_of(parts, {}) == tenant else tenant


def _overlay(row: PlannedStep) -> dict[str, Json]:
    return {
        "idx": row.idx,
        "refs": list(row.refs) or None,
        "inputs": row.inputs,
        "bindings": row.bindings,
        "options": None,  # as they were
        "fair": row.fair,
    }


def recomputed(
    spec: WorkflowSpec, rows: Iterable[Row], changed: set[str], undone: set[str], from_step: str | None
) -> set[str]:
    """The steps of the definition that a rerun computes again: those to begin with, and all behind them."""
    again = {_root(name) for name in changed} | undone
    if from_step is not None:
        again.add(from_step)
    # A step is finished if all that belongs to it is: the items of its map, what it has appended.
    again |= {row.root for row in rows if row.fatal or row.state not in _DONE}
    below = graph.children(graph.parents(spec))
    todo = list(again)
    for name in todo:
        new = [each for each in below[name] if each not in again]
        again.update(new)
        todo.extend(new)
    return again


def _root(name: str) -> str:
    found = _ROOT.match(name)
    return found[0] if found else name


def _merged(
    edits: Mapping[str, Mapping[str, Json]], inputs: Mapping[str, Mapping[str, Json]]
) -> dict[str, dict[str, Json]]:
    """The edits of the old run and the new ones over them; values are literals, whatever they look like."""
    merged = {name: dict(given) for name, given in edits.items()}
    for name, given in inputs.items():
        literals = {key: encode(value, None, key, mapped=False) for key, value in given.items()}
        merged[name] = {**merged.get(name, {}), **literals}
    return merged


def _hooks(old: dict[str, Json] | None, undo: Mapping[str, Json], *, edited: bool) -> str | None:
    hooks = {name: each for name, each in (old or {}).items() if name != WAITS}
    if edited and undo:
        hooks["compensation"] = undo
    return wire.dumps(hooks) if hooks else None


# --- refusals


def _check_steps(spec: WorkflowSpec, names: Iterable[str]) -> None:
    for name in names:
        if name not in spec.steps:
            raise NotFound(
                "step",
                name,
                f"workflow {spec.name!r} has none of this name{choices(name, spec.steps, 'there are')}",
            )


def _check_secrets(spec: WorkflowSpec, inputs: Mapping[str, Mapping[str, Json]]) -> None:
    for step, given in inputs.items():
        info = registry.actions.get(spec.steps[step].action)
        for name in sorted(info.contract.secrets & given.keys() if info is not None else ()):
            raise DefinitionError(
                f"input {name!r} is secret, and what replaces an input is kept as it is: change the parameter that it "
                "comes from",
                workflow=spec.name,
                step=step,
            )


def _check_layout(old: Run, planned: Sequence[PlannedStep], found: Sequence[Row]) -> None:
    """That this version plans the definition as the one did that started the run."""
    if [step.name for step in planned] != [row.name for row in found[: len(planned)]]:
        raise StateError(
            f"run {old.id} was planned by another version of Trellis, and its steps are numbered otherwise now: "
            "start it anew"
        )


def _undone(connection: Connection, old: Run, hooks: dict[str, Json] | None) -> set[str]:
    """The steps whose effects a compensation has undone, or undoes as soon as no body is at work any more."""
    if WAITS not in (hooks or {}) and not ask(connection, "undone_by", run=old.id):
        return set()
    planned = ((hooks or {}).get("compensation") or {}).get(old.state.value) or []
    idx = [row["of"] for row in planned if row["of"] is not None]
    return {_root(name) for _, _, _, name in ask(connection, "outcomes", run=old.id, idx=idx)}
