"""Whether this process's code fits the runs that are open.

The law: a run keeps the definition that it started with, so a deployment has to fit it: know the actions of its open
steps, with the inputs that they are given. What does not fit is told by name, with the runs, before anything fails:
by `trellis check`, and by every worker as it starts. And nothing fails of it: such a step is put back for a worker that
knows better.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..tasks.database import Connection, Database
from ..tasks.errors import DeploymentMismatch, InputError
from ..tasks.hints import did_you_mean, listed
from ..tasks.logs import get_logger
from .additions import shown
from .control import ask
from .journal import Journal
from .plan import EXPAND
from .records import Claimed, Outcome, Parked
from .registry import ActionInfo, Catalogue
from .spec import StepSpec, WorkflowSpec
from .states import RunState

UNKNOWN = "this worker does not know its action"
PATIENCE = 15.0  # seconds until another worker tries a step that this one does not know
_BATCH = 50  # definitions that are read at once
_RUNS = 200  # whose steps are looked at at once, and that are named as data
_TOLD = 5  # runs that a message names

log = get_logger("trellis.misfit")

_ROOT = re.compile(r"[^.\[]+")


class Misfit(NamedTuple):
    """A step of open runs that this code cannot run."""

    workflow: str
    step: str
    action: str
    problem: str
    runs: tuple[str, ...]  # the newest of them
    more: bool  # whether there are others

    def __str__(self) -> str:
        """In one line."""
        runs = f"{', '.join(self.runs[:_TOLD])}{', …' if self.more or len(self.runs) > _TOLD else ''}"
        return f"workflow {self.workflow!r}, step {self.step!r}: {self.problem} (runs {runs})"


def check(
    database: Database, catalogue: Catalogue, default_queue: str, queues: Collection[str] | None = None
) -> int:
    """Compare all open runs with the actions of this process; answers with how many definitions they have.

    What their definitions say, and what workers have put back. A step that a body has appended is in no definition: it
    is looked at when its turn comes, and put back then.

    queues: only steps that are sent there. Raises DeploymentMismatch.
    """
    with database.connection() as connection:
        digests = [digest for (digest,) in ask(connection, "open_definitions")]
        found: list[Misfit] = []
        for start in range(0, len(digests), _BATCH):
            batch = digests[start : start + _BATCH]
            for digest, content in ask(connection, "read_definitions", digests=batch):
                spec = WorkflowSpec.model_validate(content)
                misfits = list(of(spec, catalogue, default_queue, queues))
                if misfits:
                    found += _open(connection, digest, spec, misfits)
        known = {(each.workflow, each.step) for each in found}
        found += [
            each
            for each in _put_back(connection, catalogue, queues)
            if (each.workflow, _root(each.step)) not in known
        ]
    if found:
        raise DeploymentMismatch(found)
    return len(digests)


def _open(connection: Connection, digest: str, spec: WorkflowSpec, misfits: list[Misfit]) -> list[Misfit]:
    """Those of the misfits that are open in some run, with the newest of these runs."""
    undo = {*spec.on_failure, *spec.on_cancel}
    actions = [*{each.action for each in misfits}, EXPAND]
    runs: dict[str, list[str]] = {each.step: [] for each in misfits}
    for some in _open_runs(connection, digest):
        hit: dict[str, dict[str, None]] = {}
        for run, name in ask(connection, "open_steps", runs=some, actions=actions):
            hit.setdefault(_root(name), {})[str(run)] = None
        for step, mine in runs.items():
            mine += some if step in undo else hit.get(step, ())
        if all(len(mine) > _RUNS for mine in runs.values()):
            break
    return [
        each._replace(runs=tuple(mine[:_RUNS]), more=len(mine) > _RUNS)
        for each in misfits
        if (mine := runs[each.step])
    ]


def _open_runs(connection: Connection, digest: str) -> Iterator[list[str]]:
    """The open runs of a definition, some at a time."""
    for state in (RunState.PENDING, RunState.RUNNING, RunState.PAUSED):
        before = "ffffffff-ffff-ffff-ffff-ffffffffffff"
        while True:
            rows = ask(
                connection,
                "open_runs_of",
                definition=digest,
                state=state.value,
                before=before,
                limit=_RUNS,
            )
            if rows:
                before = str(rows[-1][0])
                yield [str(run) for (run,) in rows]
            if len(rows) < _RUNS:
                break


def _put_back(
    connection: Connection, catalogue: Catalogue, queues: Collection[str] | None
) -> Iterable[Misfit]:
    """What workers could not run and have put back, as far as this code does not know its action either."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for action, workflow, name, queue, run in ask(connection, "put_back", limit=_RUNS):
        if catalogue.get(action) is None and (queues is None or queue in queues):
            found.setdefault((workflow, shown(name), action), {})[str(run)] = None
    for (workflow, step, action), runs in found.items():
        problem = _gone(action, catalogue)
        yield Misfit(workflow, step, action, problem, tuple(runs), len(runs) >= _RUNS)


def _root(name: str) -> str:
    found = _ROOT.match(name)
    return found[0] if found else name


def of(
    spec: WorkflowSpec, catalogue: Catalogue, default_queue: str, queues: Collection[str] | None
) -> Iterable[Misfit]:
    """The steps of a definition that this code cannot run: pure."""
    undo = {name: each.step for name, each in (*spec.on_failure.items(), *spec.on_cancel.items())}
    for name, step in {**spec.steps, **undo}.items():
        problem = _problem_of(step, catalogue, default_queue, queues)
        if problem is not None:
            yield Misfit(spec.name, name, step.action, problem, (), False)


def _problem_of(
    step: StepSpec, catalogue: Catalogue, default_queue: str, queues: Collection[str] | None
) -> str | None:
    info = catalogue.get(step.action)
    queue = step.queue or (info and info.queue) or default_queue
    if queues is not None and queue not in queues:
        return None
    if info is None:
        return _gone(step.action, catalogue)
    return problem(info, step.inputs)


def _gone(action: str, catalogue: Catalogue) -> str:
    return f"action {action!r} is gone{did_you_mean(action, catalogue.names())}"


def problem(info: ActionInfo | None, inputs: Mapping[str, Any]) -> str | None:
    """Why a step with these inputs does not fit an action, by their names; None where it does. Pure."""
    if info is None:
        return UNKNOWN
    contract = info.contract
    required = [each.name for each in contract.inputs.values() if each.required and each.name not in inputs]
    if required:
        return f"action {info.name!r} wants the input {required[0]!r} now, which the step does not give"
    if not contract.accepts_any:
        strange = [name for name in inputs if name not in contract.inputs]
        if strange:
            takes = f"; it takes {listed(contract.inputs, 'none')}"
            return f"action {info.name!r} has no input {strange[0]!r} any more{takes}"
    return None


def of_outcome(outcome: Outcome, info: ActionInfo, inputs: Mapping[str, Any]) -> str | None:
    """Why a step that failed for its inputs does not fit this code; None where it does, or did not fail for them."""
    if outcome.error is None or outcome.error["type"] != InputError.__name__:
        return None
    return problem(info, inputs)


def put_back(journal: Journal, run: str, step: Claimed, why: str) -> Outcome | None:
    """Put a step that this worker cannot run aside for a moment, so that another one may: it has no outcome."""
    log.error("step.misfit", step=step.name, action=step.action, problem=why)
    note = {**(step.wait or {}), "misfit": why}
    journal.park(run, Parked(step.idx, step.lease, f"action:{step.action}", note, delay=PATIENCE))
    return None
