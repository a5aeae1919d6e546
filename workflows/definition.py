"""Workflows as they are written in Python.

The law: a `Workflow` only collects; what it comes down to is a `WorkflowSpec`, the same that YAML and
JSON give. Nothing runs here, and a value that a run will have is a reference until then.

    wf = Workflow("flights", params={"url": str, "n": Param(int, default=3)})
    raw = wf.step("raw", load, url=wf.params.url)
    rows = wf.step("rows", check, rows=raw["rows"], retry=Retry(3), timeout=60)
    delays = wf.map("delays", delay, over=rows["months"], concurrency=4, month=wf.item)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from ..tasks.errors import DefinitionError
from ..tasks.hints import choices
from ..tasks.retry import Retry
from ..tasks.settings import current
from . import canvas, parameters, registry
from .guests import Guests, either
from .literals import encode
from .loops import Loops
from .parameters import Param
from .parsing import spec_of, told
from .references import NAME, IndexRef, ItemRef, ParamRef, PreviousRef, Ref, StepRef
from .registry import ActionInfo, Catalogue
from .sagas import UNDO_OPTIONS, Sagas
from .scheduling import Scheduling
from .signatures import calls
from .spec import Default, Rate, StepSpec, UndoSpec, WorkflowSpec
from .validate import OPTIONS, unknown_input, validate
from .waits import Waits

__all__ = ["Param", "Params", "Workflow"]

_NAME = re.compile(NAME)
MAP_OPTIONS = (*OPTIONS, "over", "concurrency", "on_item_failure", "gather")


class Params:
    """`wf.params.url`, or `wf.params["odd-name"]`: references to a run's parameters."""

    __slots__ = ("_names", "_workflow")

    def __init__(self, workflow: Workflow, names: Iterable[str]) -> None:
        self._workflow = workflow
        self._names = tuple(names)

    def __getitem__(self, name: str) -> ParamRef:
        if name not in self._names:
            raise DefinitionError(
                f"there is no parameter {name!r}: declare it with Workflow(…, params={{…}})"
                f"{choices(name, self._names, 'there are')}",
                workflow=self._workflow.name,
            )
        return ParamRef(self._workflow, "params", name)

    def __getattr__(self, name: str) -> ParamRef:
        if name.startswith("__"):  # copy, pickle and inspection ask for such names
            raise AttributeError(name)
        return self[name]

    def __dir__(self) -> list[str]:
        return list(self._names)


class Workflow(Guests, Waits, Sagas, Loops, Scheduling):
    """A workflow that is being written."""

    fragment: ClassVar[bool] = False  # whether it is to be appended to a run

    def __init__(
        self,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        description: str = "",
        concurrency_key: str | None = None,
        limit: int | None = None,
        max_parallel: int | None = None,
        fair_key: str | None = None,
        deadline: float | None = None,
        register: bool = True,
        catalogue: Catalogue = registry.actions,
        on_success: Any = (),
        on_failure: Any = (),
    ) -> None:
        """Begin a workflow.

        params: name to type (anything pydantic knows), `Param`, or a JSON Schema as a dict.
        concurrency_key, limit: of the runs with the same key (`"customer:{params.id}"`) at most so many at once, 1
            without `limit`; the others wait for their turn.
        max_parallel: steps of one run at once.
        fair_key: whose run it is (`"{params.customer}"`): tenants on a queue take turns. `Client.start(tenant=…)` goes
            first.
        deadline: seconds after its start at which a run that is not over fails with `DeadlineExceeded`.
        register: whether the workflow can be found by its name in this process.
        catalogue: where actions are looked up; those of this process by default.
        on_success, on_failure: Celery signatures of tasks (one or several) that are sent when a run has succeeded, or
            has failed or was cancelled; as in `Client.start`, for every run.

        Raises DefinitionError.
        """
        head = {
            "name": name, "description": description, "concurrency_key": concurrency_key, "limit": limit,
            "max_parallel": max_parallel, "fair_key": fair_key, "deadline": deadline,
            "then": calls(name, on_success, on_failure),
        }  # fmt: skip
        self._head: WorkflowSpec = _built(WorkflowSpec, {**head, "steps": {}}, name, None)
        if not isinstance(params, Mapping | None):
            raise DefinitionError(f"params = {params!r}: give names with types: {{'n': int}}", workflow=name)
        self._params = {each: _param_schema(name, each, kind) for each, kind in (params or {}).items()}
        self._steps: dict[str, StepSpec] = {}
        self._undo: dict[str, dict[str, UndoSpec]] = {"on_failure": {}, "on_cancel": {}}
        self._spec: WorkflowSpec | None = None
        self._catalogue = catalogue
        self.name = name
        self.description = description
        self.params = Params(self, self._params)
        self.item = ItemRef(self, "item", "")
        self.index = IndexRef(self, "index", "")
        self.previous = PreviousRef(self, "previous", "")
        self._settled = not register
        self._registered = register
        if register:
            registry.workflows.add(self)

    @classmethod
    def from_spec(
        cls, spec: WorkflowSpec, *, register: bool = False, catalogue: Catalogue = registry.actions
    ) -> Workflow:
        """A workflow from its canonical definition, which the first use of `spec` checks."""
        workflow = cls(spec.name, description=spec.description, register=register, catalogue=catalogue)
        workflow._head = spec.model_copy(update={"steps": {}, "params": {}})
        workflow._params = dict(spec.params)
        workflow._steps = dict(spec.steps)
        workflow._undo = {"on_failure": dict(spec.on_failure), "on_cancel": dict(spec.on_cancel)}
        workflow.params = Params(workflow, workflow._params)
        return workflow

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], *, register: bool = False, catalogue: Catalogue = registry.actions
    ) -> Workflow:
        """The same from plain data, as in a file. Raises DefinitionError for what is wrong with its form."""
        return cls.from_spec(spec_of(content), register=register, catalogue=catalogue)

    def step(
        self,
        name: str,
        action: Any = None,
        /,
        *,
        task: Any = ...,
        args: Any = ...,
        kwargs: Any = ...,
        inputs: Mapping[str, Any] | None = None,
        after: Any = (),
        when: str | None = None,
        join: Literal["all", "any"] = "all",
        retry: Retry | int | None = None,
        timeout: float | None = None,
        queue: str | None = None,
        priority: int | None = None,
        expect: float | None = None,
        on_failure: Literal["fail", "skip"] | Default | None = None,
        concurrency_key: Any = None,
        limit: int | None = None,
        rate: Rate | None = None,
        queue_timeout: float | None = None,
        heartbeat: float | None = None,
        **more: Any,
    ) -> StepRef:
        """Add a step, and give the reference to its result.

        action: an action, or its name.
        task: in place of an action the name of a Celery task of any application on the broker, with its `args` and
            `kwargs` (references may stand in them) and the `queue` that the workers of that application listen to.
        inputs: the action's inputs, which may as well be given as keywords: literals and references, nested
            as you like. Use `inputs=` for one that has the name of an option.
        after: steps to wait for whose results are not used.
        when: a condition on params and steps; the step is skipped where it is not true.
        join: "any" where branches meet again: the step is skipped only if all that it waits for were, and the results
            of skipped ones are None. By default ("all") one is enough.
        retry: a `Retry`, or the number of attempts; the action's own by default.
        timeout: seconds one attempt may run.
        queue, priority: where the step is sent, and how urgent it is (0 to 9, 9 is the most urgent).
        expect: seconds it is expected to take: of the steps of a run that are ready at once, the one with the
            longest path behind it goes first. The action's own by default, else what was measured.
        on_failure: "fail" the run, "skip" the steps behind this one, or go on with a `Default(value)`.
        concurrency_key, limit: of the steps with the same key, in all runs and workflows, at most so many at once;
            `"customer:{params.id}"`, 1 without `limit`.
        rate: a `Rate("mailgun", 10, per=1.0)`: at most so many starts in any period, shared by its key.
        queue_timeout: seconds it may wait for a worker once it is ready; then it fails with `QueueTimeout`.
        heartbeat: seconds its body may be silent between two calls of `ctx.heartbeat()`; then it is stopped.

        Raises DefinitionError.
        """
        options = {
            "after": after,
            "when": when,
            "join": None if join == "all" else join,
            "retry": retry,
            "timeout": timeout,
            "queue": queue,
            "priority": priority,
            "expect": expect,
            "on_failure": on_failure,
            "concurrency_key": concurrency_key,
            "limit": limit,
            "rate": rate,
            "queue_timeout": queue_timeout,
            "heartbeat": heartbeat,
        }
        asked = {"task": task, "args": args, "kwargs": kwargs}
        action, inputs, more = either(self.name, name, action, asked, options, inputs, more)
        return self._add(name, action, inputs, more, options, None, OPTIONS)

    def map(
        self,
        name: str,
        action: Any = None,
        /,
        *,
        over: Any,
        concurrency: int | None = None,
        on_item_failure: Literal["fail", "skip", "collect"] = "fail",
        gather: bool = True,
        task: Any = ...,
        args: Any = ...,
        kwargs: Any = ...,
        inputs: Mapping[str, Any] | None = None,
        after: Any = (),
        when: str | None = None,
        join: Literal["all", "any"] = "all",
        retry: Retry | int | None = None,
        timeout: float | None = None,
        queue: str | None = None,
        priority: int | None = None,
        expect: float | None = None,
        on_failure: Literal["fail", "skip"] | Default | None = None,
        concurrency_key: Any = None,
        limit: int | None = None,
        rate: Rate | None = None,
        queue_timeout: float | None = None,
        heartbeat: float | None = None,
        **more: Any,
    ) -> StepRef:
        """Add a step that runs its action once for each item of a list; its result is the list of results.

        over: the list: a reference to one that is known only at run time, or a literal.
        concurrency: items in work at once; no limit by default.
        on_item_failure: what becomes of an item that has no attempt left. "fail": what `on_failure` says; "skip": it is
            left out of the list; "collect": `{"error": {"type": …, "message": …}}` stands in its place.
        gather: False where nobody wants the list: the result is then the number of results, and has no size limit.
        retry, timeout: of each item. on_failure: a `Default` stands for an item that failed, and for the whole list
            where there is none, because `over` was no list or the results are too large.
        The inputs may use `wf.item` (also `wf.item["field"]`) and `wf.index`, and so may the keys of limits (`{item}`,
        `{item.field}`, `{index}`); all else is as in `step`, for each item.
        """
        options = {
            "after": after,
            "when": when,
            "join": None if join == "all" else join,
            "retry": retry,
            "timeout": timeout,
            "queue": queue,
            "priority": priority,
            "expect": expect,
            "on_failure": on_failure,
            "concurrency_key": concurrency_key,
            "limit": limit,
            "rate": rate,
            "queue_timeout": queue_timeout,
            "heartbeat": heartbeat,
        }
        mapped = {
            "over": self._encoded(over, name, "over", False),
            "concurrency": concurrency,
            "on_item_failure": on_item_failure,
            "gather": gather,
        }
        asked = {"task": task, "args": args, "kwargs": kwargs}
        action, inputs, more = either(self.name, name, action, asked, options, inputs, more)
        return self._add(name, action, inputs, more, options, {"map": mapped}, MAP_OPTIONS)

    def _add(
        self,
        name: str,
        action: Any,
        inputs: Mapping[str, Any] | None,
        more: Mapping[str, Any],
        options: dict[str, Any],
        repeated: dict[str, Any] | None,
        allowed: tuple[str, ...],
    ) -> StepRef:
        self._check_name(name)
        content = self._content(name, action, inputs, more, repeated is not None, allowed)
        after = options.pop("after")
        if isinstance(after, Ref) or after:  # a reference has no truth
            content["after"] = self._after(after, name)
        content.update({key: value for key, value in options.items() if value is not None})
        if options["when"] is not None:
            self._check_when(options["when"], name)
        if repeated is not None:
            content.update(repeated)
        self._steps[name] = _built(StepSpec, content, self.name, name)
        self._spec, self._settled = None, not self._registered
        return StepRef(self, "steps", name)

    def _add_undo(
        self,
        option: str,
        name: str,
        action: Any,
        of: StepRef | str | None,
        inputs: Mapping[str, Any] | None,
        more: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self._check_name(name)
        if name in self._undo[option]:
            raise DefinitionError(
                f"{option} has two steps of this name: give one of them another",
                workflow=self.name,
                step=name,
            )
        content = self._content(name, action, inputs, more, False, UNDO_OPTIONS)
        if of is not None:
            content["of"] = self._after(of, name)[0]
        content.update({key: value for key, value in options.items() if value is not None})
        self._undo[option][name] = _built(UndoSpec, content, self.name, name)
        self._spec, self._settled = None, not self._registered

    def _content(
        self,
        name: str,
        action: Any,
        inputs: Mapping[str, Any] | None,
        more: Mapping[str, Any],
        mapped: bool,
        allowed: tuple[str, ...],
    ) -> dict[str, Any]:
        """Action and inputs of a step in the notation of definitions."""
        action_name, info = self._action(name, action)
        given: dict[str, Any] = {**inputs, **more} if inputs else dict(more)
        if (
            info is not None
            and not info.contract.accepts_any
            and not more.keys() <= info.contract.inputs.keys()
        ):
            extra = next(key for key in more if key not in info.contract.inputs)
            raise DefinitionError(unknown_input(extra, info.contract, allowed), workflow=self.name, step=name)
        content: dict[str, Any] = {"action": action_name}
        if given:
            if inputs and not more.keys().isdisjoint(inputs):
                twice = next(key for key in more if key in inputs)
                raise DefinitionError(
                    f"input {twice!r} is given twice, as a keyword and in inputs=",
                    workflow=self.name,
                    step=name,
                )
            content["inputs"] = {key: self._encoded(value, name, key, mapped) for key, value in given.items()}
        return content

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise DefinitionError(
                f"{name!r} cannot be the name of a step: a name begins with a letter or _, and goes on with "
                "letters, digits, _ and -",
                workflow=self.name,
            )
        if name in self._steps:
            raise DefinitionError(
                "this step is defined twice: give one of the two another name", workflow=self.name, step=name
            )

    def _action(self, step: str, action: Any) -> tuple[str, ActionInfo | None]:
        if isinstance(action, str):
            return action, self._catalogue.get(action)
        info = getattr(action, "info", None)
        if isinstance(info, ActionInfo):
            return info.name, info
        called = getattr(action, "__name__", repr(action))
        raise DefinitionError(
            f"{called} is not an action: decorate the function with @action, or give an action's name",
            workflow=self.name,
            step=step,
        )

    def _after(self, after: Any, step: str) -> tuple[str, ...]:
        every = [after] if isinstance(after, str | Ref) else list(after)
        names: list[str] = []
        for each in every:
            if isinstance(each, StepRef):
                self._encoded(each, step, "after", False)  # refuses another workflow's
                names.append(each.name)
            elif isinstance(each, str):
                names.append(each)
            else:
                raise DefinitionError(
                    f"`after` takes steps or their names, not {each!r}", workflow=self.name, step=step
                )
        return tuple(names)

    def _check_when(self, when: Any, step: str) -> None:
        if not isinstance(when, str) or "\x00" in when:
            raise DefinitionError(
                "`when` takes a plain text in which values are written as params.NAME and steps.NAME, "
                'e.g. when="steps.raw.rows > 0"',
                workflow=self.name,
                step=step,
            )

    def _encoded(self, value: Any, step: str, key: str, mapped: bool) -> Any:
        try:
            return encode(value, self, key, mapped=mapped)
        except DefinitionError as error:
            raise DefinitionError(str(error), workflow=self.name, step=step) from error

    def validate(self) -> None:
        """Check the whole definition. Raises DefinitionError, which names the step and the fix."""
        if self._spec is not None:
            return
        spec = _built(
            WorkflowSpec,
            {
                **self._head.model_dump(exclude={"steps"}),
                "params": self._params,
                "steps": dict(self._steps),
                **self._undo,
            },
            self.name,
            None,
        )
        validate(spec, self._catalogue, current().definition_max_bytes, fragment=self.fragment)
        self._spec = spec

    @property
    def spec(self) -> WorkflowSpec:
        """The canonical definition, validated. Raises DefinitionError."""
        self.validate()
        assert self._spec is not None
        if not self._settled:
            registry.workflows.settle(self, self._spec.digest())
            self._settled = True
        return self._spec

    def digest(self) -> str:
        """The digest of the definition, which is its identity. Raises DefinitionError."""
        self.validate()
        assert self._spec is not None
        return self._spec.digest()

    @property
    def params_schema(self) -> dict[str, Any]:
        """The JSON Schema of the parameters, as one object."""
        return parameters.schema_of_params(self.spec)

    def check_params(self, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The parameters of a run, with the defaults filled in. Raises ParameterError."""
        return parameters.check_params(self.spec, params or {})

    def canvas(self, /, **params: Any) -> Any:
        """The same definition as a native Celery canvas, for those who have only a broker.

        Nothing of it is journalled. Raises DefinitionError for steps that need the engine (`map`, `when`,
        `on_failure`), ParameterError for wrong parameters.
        """
        spec = self.spec
        return canvas.compile(spec, parameters.check_params(spec, params), self._catalogue)

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r}, {len(self._steps)} steps>"


def _param_schema(workflow: str, name: str, kind: Any) -> dict[str, Any]:
    try:
        return (kind if isinstance(kind, Param) else Param(kind)).schema()
    except DefinitionError as error:
        raise DefinitionError(f"parameter {name!r}: {error}", workflow=workflow) from error


def _built(model: Any, content: dict[str, Any], workflow: str, step: str | None) -> Any:
    """A part of the definition. Raises DefinitionError in place of pydantic's error."""
    try:
        return model(**content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        problem = told(first)
        raise DefinitionError(problem, workflow=workflow, step=step) from None
