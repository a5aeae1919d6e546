"""From a workflow and its parameters to a run in the journal.

The law: a run is accepted by one transaction: definition, run and all its steps, or none of them. Everything
that can be refused is refused before that transaction begins.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import SecretStr

from ..tasks.database import Connection
from ..tasks.errors import DefinitionError, NotFound, ParameterError, ValueTooLarge
from ..tasks.hints import did_you_mean, listed
from ..tasks.settings import Settings
from . import gates, ranks, registry, secret, wire
from .contract import unkeepable
from .definition import Workflow
from .journal import Journal
from .parameters import check_params
from .plan import Plan, plan
from .queries import Queries
from .records import Json, Ready
from .signatures import signature_of
from .spec import TASK, WorkflowSpec
from .tags import is_plain, tags_of

Startable = Workflow | WorkflowSpec | Mapping[str, Any] | str

# The columns of a new run that only some runs use.
UNUSED: Mapping[str, Any] = {
    "state": "pending",
    "parent_run": None,
    "parent_idx": None,
    "origin": None,
    "origin_kind": None,
    "deadline": None,  # seconds from its start
    "tags": [],
    "tenant": None,
    "single": None,
    "gates": None,
    "hooks": None,
    "follow": False,
}


class Prepared(NamedTuple):
    """A run that only has to be written."""

    run: str
    workflow: str
    definition: tuple[str, str, bytes]  # digest, name, canonical JSON
    row: dict[str, Any]
    plan: Plan

    @property
    def ready(self) -> list[Ready]:
        """The steps that may run at once."""
        return [step.ready for step in self.plan.steps if not step.missing and step.waits_for is None]

    @property
    def lines(self) -> list[str]:
        """The limits in front of its first steps."""
        if self.plan.gates is None:
            return []
        return gates.union(
            s.waits_for for s in self.plan.steps if not s.missing and gates.is_line(s.waits_for)
        )


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): ordered by time, so that new runs lie together in every index.

    Twelve bits more than its milliseconds, so that two runs that one program starts in a row are in order as well.
    """
    now, rest = divmod(time.time_ns(), 1_000_000)
    moment = now.to_bytes(6, "big")
    finer = rest * 4096 // 1_000_000
    noise = bytearray(os.urandom(10))
    noise[0] = 0x70 | finer >> 8
    noise[1] = finer & 0xFF
    noise[2] = 0x80 | noise[2] & 0x3F
    digits = (moment + bytes(noise)).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def resolve(workflow: Startable, queries: Queries | None) -> Workflow:
    """The workflow that was meant: itself, a definition, or a name known here or in the journal.

    Raises NotFound for an unknown name, DefinitionError for a definition that is wrong.
    """
    if isinstance(workflow, Workflow):
        return workflow
    if isinstance(workflow, WorkflowSpec):
        return Workflow.from_spec(workflow)
    if isinstance(workflow, Mapping):
        return Workflow.from_dict(workflow)
    known = registry.workflows.get(workflow)
    if known is not None:
        found: Workflow = known
        return found
    stored = queries.latest_definition(workflow) if queries is not None else None
    if stored is None:
        names = registry.workflows.names()
        here = f"this process knows {listed(names, 'none')}{did_you_mean(workflow, names)}"
        raise NotFound("workflow", workflow, f"{here}; name its module with --import or in TRELLIS_IMPORTS")
    return Workflow.from_dict(stored)


def single(action: Any, inputs: Mapping[str, Json]) -> tuple[Workflow, dict[str, Json]]:
    """A workflow of one step, and its parameters: what a definition must not keep.

    Raises DefinitionError for an unknown action or wrong inputs.
    """
    name = action if isinstance(action, str) else action.name
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    info = registry.actions.get(name)
    params = {each: inputs[each] for each in inputs if info is not None and each in info.contract.secrets}
    workflow = Workflow(safe, params=dict.fromkeys(params, SecretStr), register=False)
    references = {each: getattr(workflow.params, each) for each in params}
    workflow.step(safe.rpartition(".")[2] or safe, action, inputs={**inputs, **references})
    return workflow, params


def prepare(
    workflow: Workflow,
    params: Mapping[str, Json] | None,
    settings: Settings,
    *,
    key: str | None = None,
    correlation_id: str | None = None,
    run: str | None = None,
    columns: Mapping[str, Any] | None = None,
    means: ranks.Means = ranks.unmeasured,
    tags: Sequence[str] = (),
    ours: bool = False,
) -> Prepared:
    """Check everything and lay out the rows. Raises DefinitionError, ParameterError, ValueTooLarge.

    tags: by which it is found.
    means: the measured milliseconds of an action, by which steps are ranked that say nothing themselves.
    run: the id to give it; a new one without it. columns: of the run's row, where they are not those of `UNUSED`;
    what follows its end (`hooks`, see following.py) as a mapping. ours: whether encrypted parameters come from the
    journal.
    """
    spec = workflow.spec
    given = check_params(spec, params or {}, ours=ours)
    given = secret.sealed(given, spec.params, settings, spec.name, ours=ours)
    text = params_text(spec.name, given, settings.value_max_bytes)
    more = columns or {}
    _check(
        spec.name,
        {"key": key, "correlation_id": correlation_id, "tenant": more.get("tenant")},
        more.get("deadline"),
    )
    run = run or new_id()
    scope = gates.Scope(run, more.get("tenant"), settings.fair_window)
    laid = plan(spec, given, registry.actions, settings.default_queue, scope=scope)
    laid = ranks.ranked(laid, spec, given, registry.actions, means)
    row = {
        **UNUSED,
        "run": run,
        "workflow": spec.name,
        "key": key,
        "correlation": correlation_id or run,
        "params": text,
        "steps": len(laid.steps),
        "missing": laid.sinks,
        "tags": tags_of(tags, spec.name),
        "tenant": laid.tenant,
        "gates": laid.gates,
        "deadline": spec.deadline,
        **more,
    }
    hooks = _hooks(spec, laid, row["hooks"] or {})
    row |= {"hooks": wire.dumps(hooks) if hooks else None, "follow": bool(hooks)}
    return Prepared(run, spec.name, (spec.digest(), spec.name, spec.canonical()), row, laid)


def _check(workflow: str, texts: Mapping[str, str | None], deadline: float | None) -> None:
    """Raises DefinitionError for a text or a deadline that a run cannot have."""
    for what, value in texts.items():
        if value is not None and not is_plain(value):
            raise DefinitionError(
                f"a run's {what} is a text of 1 to 500 characters, without NUL and lone surrogates",
                workflow=workflow,
            )
    if deadline is not None and not 0 < deadline < float("inf"):
        raise DefinitionError(f"deadline={deadline!r} is not a number of seconds above 0", workflow=workflow)


def _hooks(spec: WorkflowSpec, laid: Plan, given: Mapping[str, Json]) -> dict[str, Json]:
    """What follows the end of the run: what was given, and what its definition and its plan add."""
    hooks = {**given, **({"compensation": laid.undo} if laid.undo else {})}
    if TASK in spec.actions:
        hooks["tasks"] = True
    if spec.then is not None:
        own = hooks.get("signatures", {})
        hooks["signatures"] = {
            kind: [*map(signature_of, each), *own.get(kind, ())]
            for kind, each in (("success", spec.then.success), ("failure", spec.then.failure))
        }
    return hooks


def write(journal: Journal, connection: Connection, prepared: Prepared, *, sent: bool) -> bool:
    """Insert the run inside the caller's transaction; False where its key has a run already.

    `sent` says that the caller will publish the first steps itself; else the next tick does.
    """
    if not journal.open(connection, prepared.definition, prepared.row):
        return False
    journal.add(connection, prepared.run, prepared.plan.steps, sent=sent)
    return True


def params_text(workflow: str, params: Mapping[str, Json], limit: int) -> str:
    """The parameters of a run as JSON. Raises ParameterError, ValueTooLarge."""
    try:
        text = wire.dumps(dict(params))
        size = len(text.encode())
    except (ValueError, TypeError) as error:
        raise ParameterError({"params": f"not JSON: {error}"}, workflow=workflow) from error
    for name, value in params.items():
        problem = unkeepable(value)
        if problem is not None:
            raise ParameterError({name: problem}, workflow=workflow)
    if size > limit:
        raise ValueTooLarge(f"the parameters of workflow {workflow!r}", size, limit)
    return text
