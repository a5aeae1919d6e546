"""The canonical definition of a workflow: what Python, YAML and JSON all come down to.

The law: a definition is data. Two definitions with the same content have the same canonical bytes and
the same digest, whatever they were written in; nothing here looks at an action's code.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..tasks.models import build, by_hand
from ..tasks.retry import Retry
from .gates import canonical_key
from .references import NAME, Hole, Path, Ref, holes

NAME_PATTERN = f"^{NAME}$"
WORKFLOW_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
TASK = "trellis.task"  # the action that a step with `task` comes down to
CHILD = "trellis.child"  # the action of a step that is a whole run

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=200)]


class Default(BaseModel):
    """What stands in for the result of a step that failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: JsonValue = Field(description="The value that the steps behind it receive.")

    @by_hand
    def __init__(self, default: Any = ..., **fields: Any) -> None:
        """`Default(0)` is `Default(default=0)`. Raises DefinitionError."""
        build(super().__init__, self, **fields, **({} if default is ... else {"default": default}))


def _key(value: Any) -> Any:
    return canonical_key(str(value)) if isinstance(value, str | Ref) else value


Key = Annotated[str, StringConstraints(min_length=1, max_length=1000), BeforeValidator(_key)]


class Rate(BaseModel):
    """At most so many starts in any period, shared by all steps with this key: `Rate("mailgun", 10, per=1.0)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Key = Field(description="What is shared: a text, with params such as mailgun:{params.account}.")
    limit: int = Field(ge=1, description="Starts in one period.")
    per: float = Field(1.0, gt=0, allow_inf_nan=False, description="Seconds of the period.")

    @by_hand
    def __init__(self, key: Any, limit: Any, per: Any = 1.0, **fields: Any) -> None:
        """`Rate("mailgun", 10, per=60)` is `Rate(key="mailgun", limit=10, per=60)`. Raises DefinitionError."""
        build(super().__init__, self, key=key, limit=limit, per=per, **fields)


class MapSpec(BaseModel):
    """One run of the action per item of a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    over: JsonValue = Field(
        description="The list: a reference such as ${steps.raw.months}, or a literal list."
    )
    concurrency: int | None = Field(None, ge=1, description="Items in work at once; no limit without it.")
    on_item_failure: Literal["fail", "skip", "collect"] = Field(
        "fail",
        description="An item without another attempt: fail: the step's on_failure decides; skip: it is left out of the "
        "list; collect: {error: {type, message}} stands in its place.",
    )
    gather: bool = Field(
        True, description="Whether the result is the list of results; else it is their number."
    )

    @cached_property
    def holes(self) -> tuple[tuple[Path, Hole], ...]:
        """The references inside `over`."""
        return tuple(holes(self.over))


class LoopSpec(BaseModel):
    """One run of the action after the other, each with the result of the one before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: str = Field(
        description="A condition on result, index, params and steps, e.g. `result.score > 0.9`, asked after each turn: "
        "the loop ends where it is true."
    )
    limit: int = Field(ge=1, le=100_000, description="Turns at most.")
    start: JsonValue = Field(
        None, description="What ${previous} is in the first turn: a literal or a reference."
    )
    on_limit: Literal["fail", "stop"] = Field(
        "fail",
        description="After the last turn that is allowed: fail, or stop: the loop's result is that of the last turn.",
    )

    @cached_property
    def holes(self) -> tuple[tuple[Path, Hole], ...]:
        """The references inside `start`."""
        return tuple(holes(self.start))


def _retry(value: Any) -> Any:
    return {"attempts": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _fail(value: Any) -> Any:
    return None if value == "fail" else value


def _task_or_action(schema: dict[str, Any]) -> None:
    schema["required"].remove("action")
    schema["oneOf"] = [
        {"required": ["action"], "properties": {"args": False, "kwargs": False}},
        {"required": ["task"], "properties": {"inputs": False}},
    ]


def _of_task(content: Any) -> Any:
    """A step with `task` as the step of the engine's action that it comes down to: one form for both."""
    if not isinstance(content, dict):
        return content
    if content.get("action") == TASK and content.get("queue") is not None:
        inputs = {"queue": content["queue"], **(content.get("inputs") or {})}
        return {**content, "queue": None, "inputs": inputs}
    if content.get("task") is None:
        if content.get("args") is not None or content.get("kwargs") is not None:
            raise _refused("args and kwargs are those of a `task`: an action takes `inputs`")
        return content
    if content.get("action") is not None:
        raise _refused("has both an action and a task: remove one of them")
    if content.get("inputs"):
        raise _refused("a `task` takes `args` and `kwargs`, not `inputs`")
    if not isinstance(content["task"], str) or not content["task"]:
        raise _refused(f"`task` is the name of a Celery task, not {content['task']!r}")
    moved = ("task", "args", "kwargs", "queue")
    given = {name: content[name] for name in (*moved, "priority") if content.get(name) is not None}
    return {
        **{name: each for name, each in content.items() if name not in moved},
        "action": TASK,
        "inputs": given,
    }


def _refused(problem: str) -> PydanticCustomError:
    return PydanticCustomError("task_form", "{problem}", {"problem": problem})


class Callee(BaseModel):
    """What a step calls: an action, or a Celery task in its place."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_task_or_action)

    action: Annotated[str, StringConstraints(min_length=1, max_length=400)] = Field(
        description="The action's name."
    )
    task: str | None = Field(
        None,
        description="In place of an action: the name of a Celery task of any application on the broker. Its `queue` "
        "is the one that the workers of that application listen to.",
    )
    args: list[JsonValue] | str | None = Field(
        None, description="The positional arguments of the `task`, or a reference to a list of them."
    )
    kwargs: dict[str, JsonValue] | str | None = Field(
        None, description="The keyword arguments of the `task`, or a reference to an object of them."
    )

    @model_validator(mode="before")
    @classmethod
    def _comes_down_to_an_action(cls, content: Any) -> Any:
        return _of_task(content)


class StepSpec(Callee):
    """One step: an action with its inputs and how it is run."""

    inputs: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="The action's inputs: literals and references such as ${steps.raw.rows}.",
    )
    after: Annotated[
        tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])
    ] = Field((), description="Steps to wait for besides those whose results the inputs use.")
    when: str | None = Field(
        None,
        description="A condition on params and steps, e.g. `params.n > 2 and steps.raw.rows > 0`; "
        "the step is skipped where it is not true.",
    )
    join: Literal["all", "any"] = Field(
        "all",
        description="all: the step is skipped where one that it waits for was; any: only where all of them were, and "
        "the results of skipped ones are null.",
    )
    retry: Annotated[
        Retry | None,
        BeforeValidator(_retry, json_schema_input_type=Retry | Annotated[int, Field(ge=1)] | None),
    ] = Field(None, description="The retry policy; a number is the attempts. The action's own without it.")
    timeout: float | None = Field(
        None, gt=0, description="Seconds one attempt may run. The action's without it."
    )
    queue: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="The queue the step is sent to. The action's without it."
    )
    priority: int | None = Field(None, ge=0, le=9, description="0 to 9, 9 is the most urgent.")
    expect: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Seconds it is expected to take; the action's, or what was measured, without it.",
    )
    on_failure: Annotated[
        Literal["fail", "skip"] | Default | None,
        BeforeValidator(_fail, json_schema_input_type=Literal["fail", "skip"] | Default | None),
    ] = Field(
        None,
        description="fail: the run fails; skip: the steps behind it are skipped; "
        "{default: …}: they go on with that value.",
    )
    concurrency_key: Key | None = Field(
        None,
        description="Steps with the same key share a limit, in all workflows: a text with params, such as "
        "customer:{params.id}; in a map also {item.id}.",
    )
    limit: int | None = Field(
        None, ge=1, description="Steps with this concurrency_key at once; 1 without it."
    )
    rate: Rate | None = Field(
        None, description="Starts in a period, shared by all steps with the rate's key."
    )
    queue_timeout: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds it may wait for a worker once it is ready."
    )
    heartbeat: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds its body may be silent: it calls ctx.heartbeat() at least that often, or is stopped.",
    )
    map: MapSpec | None = Field(None, description="Run the action once for each item of a list.")
    loop: LoopSpec | None = Field(None, description="Run the action again and again until a condition holds.")

    @cached_property
    def holes(self) -> tuple[tuple[Path, Hole], ...]:
        """The references inside the inputs, parsed once for validation, planning and drawing."""
        return tuple(holes(self.inputs)) if self.inputs else ()

    @cached_property
    def repeats(self) -> bool:
        """Whether it is run more than once: a map or a loop."""
        return self.map is not None or self.loop is not None

    @property
    def places(self) -> tuple[tuple[Path, Hole], ...]:
        """The references inside the inputs, and inside what a map goes over or a loop begins with."""
        repeated = self.map or self.loop
        return self.holes if repeated is None else (*self.holes, *repeated.holes)


class UndoSpec(Callee):
    """A step of compensation: it runs after a run has failed, or was cancelled."""

    of: Name | None = Field(
        None,
        description="The step that it undoes: it runs only if that one succeeded, the latest first. Without it, "
        "it runs in any case, after those that have one.",
    )
    inputs: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="The action's inputs: literals, and references to params and to results of finished steps.",
    )
    retry: Annotated[
        Retry | None,
        BeforeValidator(_retry, json_schema_input_type=Retry | Annotated[int, Field(ge=1)] | None),
    ] = Field(None, description="The retry policy; a number is the attempts. The action's own without it.")
    timeout: float | None = Field(
        None, gt=0, description="Seconds one attempt may run. The action's without it."
    )
    queue: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="The queue the step is sent to. The action's without it."
    )
    priority: int | None = Field(None, ge=0, le=9, description="0 to 9, 9 is the most urgent.")

    @cached_property
    def step(self) -> StepSpec:
        """The same as a step: what is checked and planned."""
        return StepSpec(
            action=self.action,
            inputs=self.inputs,
            retry=self.retry,
            timeout=self.timeout,
            queue=self.queue,
            priority=self.priority,
        )


class CallSpec(BaseModel):
    """A Celery task that is sent when a run has ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Annotated[str, StringConstraints(min_length=1, max_length=400)] = Field(
        description="The name of the Celery task."
    )
    args: list[JsonValue] = Field(
        default_factory=list,
        description="Its arguments, behind the run's results (`success`) or what went wrong (`failure`).",
    )
    kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="Its keyword arguments.")
    queue: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="The queue that its workers listen to; TRELLIS_DEFAULT_QUEUE without it."
    )
    priority: int | None = Field(None, ge=0, le=9, description="0 to 9, 9 is the most urgent.")
    immutable: bool = Field(False, description="Whether it gets `args` and `kwargs` alone.")


def _calls(value: Any) -> Any:
    return [value] if isinstance(value, dict | CallSpec) else value


Calls = Annotated[
    tuple[CallSpec, ...], BeforeValidator(_calls, json_schema_input_type=CallSpec | tuple[CallSpec, ...])
]


class ThenSpec(BaseModel):
    """What Celery hears of the end of every run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    success: Calls = Field((), description="Tasks that are sent when the run has succeeded.")
    failure: Calls = Field((), description="Tasks that are sent when it has failed or was cancelled.")


class WorkflowSpec(BaseModel):
    """A whole definition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=WORKFLOW_NAME_PATTERN, max_length=200)] = Field(
        description="The workflow's name."
    )
    description: str = Field("", description="What the workflow is for.")
    params: dict[Name, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="The run's parameters: name to JSON Schema. A `default` inside makes one optional.",
        json_schema_extra={"additionalProperties": False},
    )
    concurrency_key: Key | None = Field(
        None,
        description="Runs with the same key share a limit, such as customer:{params.id}: those beyond it "
        "wait for their turn.",
    )
    limit: int | None = Field(None, ge=1, description="Runs with this concurrency_key at once; 1 without it.")
    max_parallel: int | None = Field(None, ge=1, description="Steps of one run at once.")
    fair_key: Key | None = Field(
        None, description="Whose run it is, such as {params.customer}: tenants on a queue take turns."
    )
    deadline: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after its start at which a run that is not over fails.",
    )
    steps: dict[Name, StepSpec] = Field(
        description="The steps by name, in any order. Names are letters, digits, _ and -.",
        json_schema_extra={"additionalProperties": False, "minProperties": 1},
    )
    on_failure: dict[Name, UndoSpec] = Field(
        default_factory=dict,
        description="Steps that run after the run has failed: compensation, by name.",
        json_schema_extra={"additionalProperties": False},
    )
    on_cancel: dict[Name, UndoSpec] = Field(
        default_factory=dict,
        description="Steps that run after the run was cancelled.",
        json_schema_extra={"additionalProperties": False},
    )

    then: ThenSpec | None = Field(None, description="Celery tasks that are sent when a run has ended.")

    @cached_property
    def actions(self) -> frozenset[str]:
        """The names of all actions."""
        return frozenset(step.action for step in self.steps.values())

    @cached_property
    def timed(self) -> bool:
        """Whether a step says how long it is expected to take."""
        return any(step.expect is not None for step in self.steps.values())

    @cached_property
    def _canonical(self) -> bytes:
        content = self.model_dump(exclude_defaults=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()

    def canonical(self) -> bytes:
        """Sorted, compact JSON without the defaults. Raises ValueError for what JSON cannot hold."""
        return self._canonical

    def digest(self) -> str:
        """The SHA-256 of the canonical bytes, in hex: the definition's identity."""
        return hashlib.sha256(self._canonical).hexdigest()
