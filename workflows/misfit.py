"""Whether this process's code fits the runs that are open.

The law: a run keeps the definition that it started with, so a deployment has to fit it: know the actions of its open
steps, with the inputs that they are given. What does not fit is told by name, with the runs, before anything fails:
by `trellis check`, and by every worker as it starts. And nothing fails of it: such a step is put back for a worker that
knows better.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ..tasks.database import Database
from ..tasks.errors import DeploymentMismatch, InputError
from ..tasks.logs import get_logger
from .control import ask
from .hints import did_you_mean, listed
from .journal import Journal
from .plan import EXPAND
from .records import Claimed, Outcome, Parked
from .registry import ActionInfo, Catalogue
from .spec import StepSpec, WorkflowSpec

UNKNOWN = "this worker does not know its action"
PATIENCE = 15.0  # seconds until another worker tries a step that this one does not know
_OPEN_RUNS = 10_000  # of each state that are looked at, the newest
_RUNS = 200  # of one definition whose steps are looked at
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
    """Compare the open runs with the actions of this process; answers with how many definitions they have.

    queues: only steps that are sent there. Raises DeploymentMismatch.
    """
    with database.connection() as connection:
        rows = ask(connection, "open_definitions", limit=_OPEN_RUNS)
        found: list[Misfit] = []
        for content, runs in rows:
            spec = WorkflowSpec.model_validate(content)
            misfits = list(of(spec, catalogue, default_queue, queues))
            if not misfits:
                continue
            some = runs[:_RUNS]
            hit = ask(
                connection,
                "open_steps",
                runs=some,
                actions=[*{each.action for each in misfits}, EXPAND],
            )
            open_in: dict[str, list[str]] = {}
            for run, name in hit:
                root = _ROOT.match(name)
                if root is not None and str(run) not in open_in.setdefault(root[0], []):
                    open_in[root[0]].append(str(run))
            undo = {*spec.on_failure, *spec.on_cancel}
            for each in misfits:
                mine = some if each.step in undo else open_in.get(each.step, [])
                if mine:
                    found.append(each._replace(runs=tuple(map(str, mine)), more=len(runs) > len(some)))
    if found:
        raise DeploymentMismatch(found)
    return len(rows)


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
        return f"action {step.action!r} is gone{did_you_mean(step.action, catalogue.names())}"
    return problem(info, step.inputs)


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
