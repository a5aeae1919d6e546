"""Child runs: a whole run as a step of another one.

The law: the child is inserted in the transaction that parks its parent's step, so there is exactly one for each
attempt. Its end wakes the parent (a trigger, whatever ended it); its results come up as the step's result. It has the
tenant of its parent, unless its own `fair_key` says whose it is.
"""

from __future__ import annotations

import time

from ..tasks.database import Connection
from ..tasks.errors import ChildFailed, ParameterError, ValueTooLarge
from ..tasks.vault import is_sealed
from . import launch, secret
from .definition import Workflow
from .execution import failed
from .here import Here
from .kinds import CONTRACTS
from .queries import Queries
from .records import Claimed, Json, Outcome, Parked
from .states import RunState, StepState
from .waiting import noted, parked


def child(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome | None:
    """Start a run and wait for its end. Its last steps' results, by name, are the step's result."""
    given = CONTRACTS[step.action].validate(inputs)
    note = noted(step)
    if "child" in note:
        return here.journal.decide(here.run, lambda connection: _ending(here, step, connection, note))
    workflow = launch.resolve(given["workflow"], Queries(here.journal.database))
    columns: dict[str, Json] = {"parent_run": here.run, "parent_idx": step.idx}
    tenant = (step.options or {}).get("tenant")
    if tenant is not None and workflow.spec.fair_key is None:
        columns["tenant"] = tenant
    prepared = launch.prepare(
        workflow,
        _handed_down(workflow, given.get("params") or {}),
        here.settings,
        ours=True,
        correlation_id=here.correlation_id,
        columns=columns,
        means=here.dispatcher.mean_ms,
    )

    def begin(connection: Connection) -> Outcome | Parked:
        launch.write(here.journal, connection, prepared, sent=True)
        return parked(step, f"run:{prepared.run}", {"child": prepared.run, "workflow": prepared.workflow})

    here.journal.decide(here.run, begin)
    here.dispatcher.publish(prepared.run, prepared.workflow, prepared.ready)
    here.admission.admit(prepared.lines)
    return None


def _handed_down(workflow: Workflow, params: dict[str, Json]) -> dict[str, Json]:
    """Parameters from the parent's. Raises ParameterError for a secret one that the child does not take as secret."""
    secrets = secret.names(workflow.spec.params)
    for name, value in params.items():
        if name not in secrets and is_sealed(value):
            raise ParameterError(
                {name: "is secret in the parent, and not here: declare it as SecretStr"},
                workflow=workflow.name,
            )
    return params


def _ending(here: Here, step: Claimed, connection: Connection, note: dict[str, Json]) -> Outcome | Parked:
    began = time.monotonic()
    run = note["child"]
    end = here.journal.ending(connection, run, here.settings.value_max_bytes)
    if end.state is RunState.SUCCEEDED:
        if end.results is None:
            error = ValueTooLarge(f"the results of child run {run}", end.size, here.settings.value_max_bytes)
            return failed(step, error, began)
        return Outcome(step.idx, step.lease, StepState.SUCCEEDED, end.results, ended=began)
    if end.state in (RunState.FAILED, RunState.CANCELLED):
        return failed(step, ChildFailed(run, note["workflow"], end.state, end.error or {}), began)
    return parked(step, f"run:{run}", {"child": run, "workflow": note["workflow"]})
