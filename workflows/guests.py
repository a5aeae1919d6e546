"""How Celery's own tasks and canvases come into a workflow: the part of `Workflow` that takes them in.

The law: sugar alone. A task becomes a step of the engine's action `trellis.task`, a canvas becomes such steps and
those of actions; what has no like here is refused where it is written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import NoneType
from typing import Any, Self

from celery import current_app
from celery import signature as celery_signature
from celery.canvas import Signature

from ..tasks.errors import DefinitionError
from ..tasks.hints import choices
from ..tasks.settings import current
from . import imported, registry, secret
from .parameters import check_params
from .references import Ref, StepRef
from .registry import Catalogue
from .spec import TASK, WorkflowSpec

RUN = "trellis.run"  # the task that begins a run inside a canvas


def either(
    workflow: str,
    step: str,
    action: Any,
    asked: Mapping[str, Any],
    options: dict[str, Any],
    inputs: Mapping[str, Any] | None,
    more: dict[str, Any],
) -> tuple[Any, Mapping[str, Any] | None, dict[str, Any]]:
    """Action, inputs and further inputs of a step with an action, or a task in its place (`...`: not given)."""
    given = {name: value for name, value in asked.items() if value is not ...}
    if action is None:
        return TASK, task_inputs(workflow, step, given, options, inputs, more), {}
    return action, inputs, {**given, **more}  # an action may have inputs of these names


def task_inputs(
    workflow: str,
    step: str,
    given: dict[str, Any],
    options: dict[str, Any],
    inputs: Mapping[str, Any] | None,
    more: dict[str, Any],
) -> dict[str, Any]:
    """The inputs of a step that is a task of another application; its queue is theirs, not ours: it leaves `options`.

    Raises DefinitionError.
    """
    task = getattr(given.get("task"), "name", given.get("task"))  # the task itself is as good as its name
    if not isinstance(task, str) or not task:
        problem = "a step needs an action, or task= with the name of a Celery task"
    elif inputs or more:
        extra = next(iter({**(inputs or {}), **more}))
        problem = f"{extra!r} is no option: task {task!r} takes its arguments as args=[…] and kwargs={{…}}"
    elif not isinstance(given.get("args"), list | tuple | Ref | NoneType):
        problem = f"args= is a list, or a reference to one, not {given['args']!r}"
    elif not isinstance(given.get("kwargs"), Mapping | Ref | NoneType):
        problem = f"kwargs= is a mapping, or a reference to one, not {given['kwargs']!r}"
    else:
        asked = {**given, "task": task, "queue": options["queue"], "priority": options["priority"]}
        options["queue"] = None
        return {each: value for each, value in asked.items() if value is not None}
    raise DefinitionError(problem, workflow=workflow, step=step)


class Guests:
    """A workflow from what others wrote for Celery."""

    name: str

    @property
    @abstractmethod
    def spec(self) -> WorkflowSpec:
        """The canonical definition."""

    @abstractmethod
    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        register: bool = True,
        catalogue: Catalogue = registry.actions,
    ) -> None:
        """What the class that this is a part of does."""

    @abstractmethod
    def step(self, name: str, action: Any = None, /, **options: Any) -> StepRef:
        """Add a step."""

    @classmethod
    def from_canvas(
        cls,
        name: str,
        canvas: Any,
        *,
        description: str = "",
        register: bool = True,
        catalogue: Catalogue = registry.actions,
    ) -> Self:
        """A workflow from an existing Celery chain, group or chord: a step for each of its tasks.

        Results are passed on as Celery does: to the first argument, a group's as a list, none to immutable signatures.
        Actions of this process become steps of theirs, other tasks steps of `task=` on their applications' queues.
        Raises DefinitionError, with the place, for what has no like here (link, countdown, map and chunks).
        """
        workflow = cls(name, description=description, register=register, catalogue=catalogue)
        imported.add(workflow, catalogue, canvas)
        return workflow

    def s(self, **params: Any) -> Signature:
        """A run as a Celery signature: in a chain the result of what came before is the first parameter not given here.

        What the run ends with (as `client.result`) is passed on. Raises ParameterError.
        """
        return self.signature(params)

    def si(self, **params: Any) -> Signature:
        """The same, immutable: what came before is waited for, and its result not used."""
        return self.signature(params, immutable=True)

    def signature(
        self, params: Mapping[str, Any] | None = None, *, step: str | None = None, immutable: bool = False
    ) -> Signature:
        """A run as a Celery signature, for your own chains, groups and chords. Its task begins the run and ends; the
        canvas goes on when the run does, and no worker is held meanwhile.

        params: of the run, without the one that takes the result of what came before.
        step: the step whose result is passed on; without it all results of the last steps, by name.
        immutable: what came before is not used.

        Tasks behind it go to the default queue of the present application (`celery.current_app`), or to the one that
        is set for them: `task.s().set(queue=…)`. Groups, chords and `get()` need the application's result backend, and
        TRELLIS_RESULT_BACKEND_URL with the same address on the workers of Trellis.

        Raises ParameterError, DefinitionError.
        """
        given = dict(params or {})
        spec = self.spec
        secret.refuse(spec.params, "a canvas carries it through the broker as it is", spec.name)
        into = None if immutable else next((name for name in spec.params if name not in given), None)
        check_params(spec, given, later=into)
        if step is not None and step not in spec.steps:
            raise DefinitionError(
                f"step={step!r} does not exist{choices(step, spec.steps, 'there are')}", workflow=self.name
            )
        known = registry.workflows.get(self.name) is self
        kwargs = {
            "workflow": self.name if known else spec.model_dump(mode="json", exclude_defaults=True),
            "params": given,
            "into": into,
            "step": step,
            "home": current_app.conf.task_default_queue,
        }
        options = {"queue": current().default_queue, "serializer": "json"}
        return celery_signature(RUN, kwargs=kwargs, options=options, immutable=immutable)
