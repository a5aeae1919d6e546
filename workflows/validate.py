"""What is refused when a workflow is defined.

The law: whatever can be known to be wrong before a run is refused before a run, in a message that names
the workflow, the step, the problem and the fix. One pass over the steps, linear in their number; what
depends only on an action (its schemas, its types) is worked out once per action.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from ..tasks.errors import DefinitionError, InputError
from ..tasks.hints import choices, did_you_mean, listed
from . import collector, expressions, gates, graph, secret
from .contract import Contract, unkeepable
from .parameters import check_schemas
from .references import Hole, Path, Reference, references, show
from .registry import ActionInfo, Catalogue, unknown_action
from .schemas import Schema, enter, fits, list_of, type_of, types, whole, words
from .spec import CHILD, StepSpec, WorkflowSpec

OPTIONS = (
    "after", "when", "join", "retry", "timeout", "queue", "priority", "expect", "on_failure", "inputs",
    "concurrency_key", "limit", "rate", "queue_timeout", "heartbeat",
)  # fmt: skip

_NO_KEY = 'limit says how many at once of what: give concurrency_key as well, such as "customer:{params.id}"'


def validate(spec: WorkflowSpec, catalogue: Catalogue, max_bytes: int, *, fragment: bool = False) -> None:
    """Check a definition. Raises DefinitionError (CycleError for a circle) at the first problem.

    fragment: whether it is appended to a run, whose finished steps it may use.
    """
    with collector.paused():
        validation = _Validation(spec, catalogue, fragment=fragment)
        validation.check()
        parents = graph.parents(spec)
        order = graph.order(parents, workflow=spec.name)
        validation.check_joins(parents, order)
        _check_content(spec, max_bytes)


class _Validation:
    """One validation, with what it has worked out so far."""

    def __init__(self, spec: WorkflowSpec, catalogue: Catalogue, *, fragment: bool = False) -> None:
        self.spec = spec
        self.fragment = fragment
        self.catalogue = catalogue
        self._required: dict[str, frozenset[str]] = {}
        self._results: dict[Reference, frozenset[str] | None] = {}
        self._taken: dict[tuple[str, str], frozenset[str] | None] = {}
        self._step = ""
        self._secret = secret.names(spec.params)

    def check(self) -> None:
        """Check params and steps."""
        spec = self.spec
        check_schemas(spec)
        self._check_run_limits()
        if not spec.steps:
            raise DefinitionError("it has no steps: add one", workflow=spec.name)
        try:
            self._check_steps()
            self._check_undo()
        except DefinitionError as error:
            if error.workflow is not None:
                raise
            self._refuse(str(error))  # a reference that cannot be read does not know where it stands

    def _check_steps(self) -> None:
        spec = self.spec
        for name, step in spec.steps.items():
            self._step = name
            info = self.catalogue.get(step.action)
            if info is None:
                self._refuse(unknown_action(step.action, self.catalogue))
            for parent in step.after:
                if parent not in spec.steps:
                    self._refuse(f"`after` names a step {parent!r} that does not exist{self._steps(parent)}")
            if step.map is not None:
                self._check_map(step)
            if step.loop is not None:
                self._check_loop(step)
            self._check_inputs(step, info)
            if step.when is not None:
                self._check_condition(step.when)
            self._check_limits(step, info)

    def _check_run_limits(self) -> None:
        spec = self.spec
        try:
            for key in (spec.concurrency_key, spec.fair_key):
                if key is not None:
                    self._check_key(key, item=False)
            if spec.limit is not None and spec.concurrency_key is None:
                raise DefinitionError(_NO_KEY)
        except DefinitionError as error:
            raise DefinitionError(str(error), workflow=spec.name) from None

    def _check_limits(self, step: StepSpec, info: ActionInfo) -> None:
        try:
            if step.concurrency_key is not None:
                self._check_key(step.concurrency_key, item=step.map is not None)
            if step.rate is not None:
                self._check_key(step.rate.key, item=step.map is not None)
        except DefinitionError as error:
            self._refuse(str(error))
        if step.limit is not None and step.concurrency_key is None:
            hint = (
                f"; if it is meant for the input of action {info.name!r}, give it as inputs={{'limit': …}}"
                if "limit" in info.contract.inputs
                else ""
            )
            self._refuse(_NO_KEY + hint)
        if step.heartbeat is not None and info.contract.context_parameter is None:
            self._refuse(
                f"heartbeat={step.heartbeat:g}, but the body of action {info.name!r} cannot call ctx.heartbeat(): "
                "give it a parameter `ctx: Context`, or leave heartbeat out"
            )

    def _check_key(self, key: str, *, item: bool) -> None:
        for reference in references(gates.template(key, item=item)):
            if reference.kind != "params":
                continue
            if reference.name not in self.spec.params:
                raise DefinitionError(
                    f"the key {key!r} uses a parameter {reference.name!r} that does not exist"
                    f"{self._params(reference.name)}"
                )
            if reference.name in self._secret:
                raise DefinitionError(
                    f"the key {key!r} uses {reference}, which is secret, and keys are kept as they are"
                )
            try:
                enter(whole(self.spec.params[reference.name]), reference.path)
            except LookupError as error:
                raise DefinitionError(f"the key {key!r} uses {reference}, but {error}") from None

    def _check_undo(self) -> None:
        for option, steps in (("on_failure", self.spec.on_failure), ("on_cancel", self.spec.on_cancel)):
            for name, undo in steps.items():
                self._step = name
                if name in self.spec.steps:
                    self._refuse(f"a step and a step of {option} have this name: give one of them another")
                info = self.catalogue.get(undo.action)
                if info is None:
                    self._refuse(unknown_action(undo.action, self.catalogue))
                if undo.of is not None and undo.of not in self.spec.steps:
                    self._refuse(f"`of` names a step {undo.of!r} that does not exist{self._steps(undo.of)}")
                self._check_inputs(undo.step, info)

    def check_joins(self, parents: graph.Parents, order: Iterable[str]) -> None:
        """Where branches meet: that there are some, and that inputs take null where a branch may be skipped."""
        if all(step.join == "all" for step in self.spec.steps.values()):
            return
        gone: set[str] = set()  # steps that may be skipped
        blocking: set[str] = set()  # those, and those that may fail and skip what is behind them
        for name in order:
            self._step, step = name, self.spec.steps[name]
            above = parents[name]
            if step.join == "any":
                if not above:
                    self._refuse("join='any' is for a step that waits for others: leave it out")
                self._check_nulls(step, gone | blocking)
            every = all if step.join == "any" else any
            if step.when is not None or (above and every(each in blocking for each in above)):
                gone.add(name)
            if name in gone or step.on_failure == "skip":
                blocking.add(name)

    def _check_nulls(self, step: StepSpec, nullable: set[str]) -> None:
        info = self.catalogue.get(step.action)
        for at, hole in step.holes:
            if info is None or len(at) > 1 or not isinstance(hole, Reference) or hole.kind != "steps":
                continue
            name = str(at[0])
            if hole.name in nullable and not fits(
                frozenset({"null"}), self._types_taken(name, info.contract)
            ):
                self._refuse(
                    f"input {name!r} of action {info.contract.name!r} does not take null, which {hole} is where step "
                    f"{hole.name!r} was skipped: let the action take None as well"
                )

    def _check_inputs(self, step: StepSpec, info: ActionInfo) -> None:
        contract = info.contract
        self._check_names(step, contract)
        if contract.secrets:
            self._check_secrets(step, contract)
        if not step.holes:  # all literals: the contract itself judges them, at once
            try:
                contract.validate(step.inputs)
            except InputError as error:
                name, problem = next(iter(error.problems.items()))
                self._refuse(f"input {name!r} of action {contract.name!r}: {problem}")
            return
        held: set[str | int] = set()
        for at, hole in step.holes:
            held.add(at[0])
            for reference in references(hole):
                self._check_reference(reference, step, _where(at))
                if reference.kind == "params" and reference.name in self._secret:
                    self._check_secret(at, hole, step, contract)
            if len(at) == 1:
                self._check_type(str(at[0]), hole, step, contract)
        for name, value in step.inputs.items():
            if name in held:
                self._check_shape(name, value, contract)
                continue
            literal = contract.problem(name, value)
            if literal is not None:
                self._refuse(f"input {name!r} of action {contract.name!r}: {literal}")

    def _check_names(self, step: StepSpec, contract: Contract) -> None:
        given = step.inputs.keys()
        required = self._required.get(contract.name)
        if required is None:
            required = frozenset(each.name for each in contract.inputs.values() if each.required)
            self._required[contract.name] = required
        if not required <= given:
            missing = next(name for name in contract.inputs if name in required and name not in given)
            hint = did_you_mean(missing, given - contract.inputs.keys())
            if missing in OPTIONS:
                hint = f"; its name is that of an option, so give it as inputs={{{missing!r}: …}}"
            self._refuse(f"input {missing!r} of action {contract.name!r} is missing{hint}")
        if not contract.accepts_any and not given <= contract.inputs.keys():
            extra = next(name for name in given if name not in contract.inputs)
            self._refuse(unknown_input(extra, contract))

    def _check_secrets(self, step: StepSpec, contract: Contract) -> None:
        """That no secret input is a literal."""
        given = {str(at[0]) for at, hole in step.holes if not isinstance(hole, str)}
        for name in contract.secrets & step.inputs.keys():
            if name not in given and step.inputs[name] is not None:
                self._refuse(
                    f"input {name!r} of action {contract.name!r} is secret, and a definition is kept as it is "
                    "written: make it a parameter of type SecretStr, and refer to that"
                )

    def _check_secret(self, at: Path, hole: Hole, step: StepSpec, contract: Contract) -> None:
        """That a secret parameter goes, as a whole, to an input that is secret, or on to a child run."""
        whole_one = isinstance(hole, Reference)
        to_child = step.action == CHILD and len(at) == 2 and at[0] == "params"
        if whole_one and (to_child or (len(at) == 1 and at[0] in contract.secrets)):
            return
        self._refuse(
            f"{_where(at)} of action {contract.name!r} uses a secret parameter: it goes, as a whole, to an input that "
            "is declared as SecretStr"
        )

    def _check_reference(
        self, reference: Reference, step: StepSpec, where: str, *, over: bool = False
    ) -> None:
        kind, name = reference.kind, reference.name
        if kind == "steps":
            if name not in self.spec.steps:
                self._refuse(f"{where} refers to a step {name!r} that does not exist{self._steps(name)}")
        elif kind == "params":
            if name not in self.spec.params:
                self._refuse(
                    f"{where} refers to a parameter {name!r} that does not exist{self._params(name)}"
                )
            if over and name in self._secret:
                self._refuse(
                    f"{where} uses parameter {name!r}, which is secret, and lists are kept as they are"
                )
        elif kind == "run":
            if not self.fragment:
                self._refuse(
                    f"{where} uses {reference}, which only a fragment can that a running step appends: write "
                    "${steps.NAME}"
                )
        elif over:
            there = "loop goes on" if step.map is None else "list is there"
            self._refuse(f"{where} uses ${{{kind}}}, which exists only once the {there}: use params or steps")
        elif kind == "previous" and step.loop is None:
            self._refuse(
                f"{where} uses ${{previous}} outside a loop: make the step a loop, or refer to a step"
            )
        elif step.map is None and (step.loop is None or kind == "item"):
            self._refuse(f"{where} uses ${{{kind}}} outside a map: make the step a map, or refer to a step")
        self._types_at(reference, step, where)

    def _types_at(self, reference: Reference, step: StepSpec, where: str) -> frozenset[str] | None:
        """The types of a referenced value. Refuses a path that its schema does not have."""
        if reference.kind == "index":
            return frozenset({"integer"})
        known = reference.kind not in ("item", "previous")  # they differ from step to step
        if known and reference in self._results:
            return self._results[reference]
        try:
            found = types(enter(self._schema(reference, step), reference.path))
        except LookupError as error:
            self._refuse(f"{where} refers to {reference}, but {error}")
        if known:
            self._results[reference] = found
        return found

    def _schema(self, reference: Reference, step: StepSpec) -> Schema:
        if reference.kind == "params":
            return whole(self.spec.params[reference.name])
        if reference.kind == "item":
            return self._item_schema(step)
        if reference.kind in ("run", "previous"):
            return whole(None)
        source = self.spec.steps[reference.name]
        info = self.catalogue.get(source.action)
        result = whole(None if info is None else info.contract.output_schema)
        if source.map is None:
            return result
        if not source.map.gather:
            return whole({"type": "integer"})
        return list_of(whole(None) if source.map.on_item_failure == "collect" else result)

    def _item_schema(self, step: StepSpec) -> Schema:
        assert step.map is not None
        over = step.map.holes
        if len(over) != 1 or not isinstance(over[0][1], Reference) or over[0][0]:
            return whole(None)
        try:
            return enter(self._schema(over[0][1], step), (*over[0][1].path, 0))
        except LookupError:  # told by the check of `over` itself
            return whole(None)

    def _check_loop(self, step: StepSpec) -> None:
        assert step.loop is not None
        if step.map is not None:
            self._refuse("a step is a map or a loop, not both: let each item be a child run that loops")
        for _, hole in step.loop.holes:
            for reference in references(hole):
                self._check_reference(reference, step, "the loop's `start`", over=True)
        self._check_condition(step.loop.until, turns=True)

    def _check_map(self, step: StepSpec) -> None:
        assert step.map is not None
        over = step.map.over
        for at, hole in step.map.holes:
            for reference in references(hole):
                self._check_reference(reference, step, "the map's `over`", over=True)
            if at == ():
                given = (
                    self._types_at(hole, step, "") if isinstance(hole, Reference) else frozenset({"string"})
                )
                if not fits(given, frozenset({"array"})):
                    assert given is not None
                    self._refuse(f"the map goes over a list, but {over!r} is of type {words(given)}")
        if not step.map.holes and not isinstance(over, list):
            self._refuse(
                f"the map goes over a list, but {over!r} is of type {type_of(over)}: give a list, or a "
                "reference to one such as ${steps.raw.months}"
            )

    def _check_type(self, name: str, hole: Hole, step: StepSpec, contract: Contract) -> None:
        """An input that is one string: a literal, a typed reference or a text."""
        if isinstance(hole, str):
            problem = contract.problem(name, hole)
            if problem is not None:
                self._refuse(f"input {name!r} of action {contract.name!r}: {problem}")
            return
        given: frozenset[str] | None = frozenset({"string"})
        if isinstance(hole, Reference):
            given = self._types_at(hole, step, _where((name,)))
        taken = self._types_taken(name, contract)
        if not fits(given, taken):
            assert given is not None
            assert taken is not None
            what = str(hole) if isinstance(hole, Reference) else "a text with references"
            self._refuse(
                f"input {name!r} of action {contract.name!r} takes {words(taken)}, but {what} is of type "
                f"{words(given)}"
            )

    def _check_shape(self, name: str, value: Any, contract: Contract) -> None:
        """A list or an object with references inside: only its own type can be known."""
        taken = self._types_taken(name, contract)
        if not isinstance(value, str) and taken is not None and not fits(frozenset({type_of(value)}), taken):
            self._refuse(
                f"input {name!r} of action {contract.name!r} takes {words(taken)}, but it is given a value "
                f"of type {type_of(value)}"
            )

    def _types_taken(self, name: str, contract: Contract) -> frozenset[str] | None:
        key = (contract.name, name)
        if key not in self._taken:
            schema = contract.input_schema
            self._taken[key] = types(Schema(schema["properties"].get(name), schema))
        return self._taken[key]

    def _check_condition(self, text: str, *, turns: bool = False) -> None:
        try:
            names = expressions.names(text, turns=turns)
        except DefinitionError as error:
            self._refuse(str(error))
        for reference in names.references:
            kind, name = reference.kind, reference.name
            if kind == "steps" and name not in self.spec.steps:
                self._refuse(
                    f"the condition {text!r} uses a step {name!r} that does not exist{self._steps(name)}"
                )
            if kind == "params" and name not in self.spec.params:
                self._refuse(
                    f"the condition {text!r} uses a parameter {name!r} that does not exist"
                    f"{self._params(name)}"
                )
            if kind == "params" and name in self._secret:
                self._refuse(f"the condition {text!r} uses parameter {name!r}, which is secret")
            self._check_condition_path(text, reference)

    def _check_condition_path(self, text: str, reference: Reference) -> None:
        """A misspelt field would be null, and the step silently skipped."""
        path = reference.path
        for position, part in enumerate(path):
            if part in expressions.ATTRIBUTES:
                path = path[:position]
                break
        try:
            enter(self._schema(reference, self.spec.steps[self._step]), path)
        except LookupError as error:
            self._refuse(f"the condition {text!r} uses {reference.kind}.{reference.name}, but {error}")

    def _steps(self, name: str) -> str:
        return choices(name, self.spec.steps, "there are")

    def _params(self, name: str) -> str:
        return choices(name, self.spec.params, "there are")

    def _refuse(self, message: str) -> NoReturn:
        raise DefinitionError(message, workflow=self.spec.name, step=self._step)


def unknown_input(name: str, contract: Contract, options: Iterable[str] = OPTIONS) -> str:
    """The refusal of an input that an action does not take: it may be a mistyped input or option."""
    hint = did_you_mean(name, [*contract.inputs, *options])
    return (
        f"{name!r} is neither an input of action {contract.name!r} nor an option{hint} "
        f"(its inputs: {listed(contract.inputs)}; options: {listed(options)})"
    )


def _where(at: Path) -> str:
    return f"input {at[0]!r}" if len(at) == 1 else f"input {at[0]!r} at {show(at[1:])}"


def _check_content(spec: WorkflowSpec, max_bytes: int) -> None:
    """That the definition is JSON which Postgres can hold, and not too large."""
    try:
        content = spec.canonical()
    except ValueError as error:  # NaN, or a lone surrogate
        step, problem = _culprit(spec)
        raise DefinitionError(problem or f"it is not JSON: {error}", workflow=spec.name, step=step) from None
    if b"\\u0000" in content:
        step, problem = _culprit(spec)
        if problem is not None:
            raise DefinitionError(problem, workflow=spec.name, step=step)
    if len(content) > max_bytes:
        raise DefinitionError(
            f"the definition is {len(content):,} bytes of JSON, the limit is {max_bytes:,}: pass large "
            "values as artifacts, let a map make the steps, or raise TRELLIS_DEFINITION_MAX_BYTES",
            workflow=spec.name,
        )


def _culprit(spec: WorkflowSpec) -> tuple[str | None, str | None]:
    """The step (None: the head of the definition) with content that cannot be kept, and what it is."""
    for name, step in spec.steps.items():
        problem = _unkeepable(step.model_dump(exclude_defaults=True))
        if problem is not None:
            return name, problem
    return None, _unkeepable(spec.model_dump(exclude={"steps"}))


def _unkeepable(value: Mapping[str, Any]) -> str | None:
    problem = unkeepable(value)
    if problem is None and _has_surrogate(value):
        return "a text holds a lone surrogate, which is no Unicode character: remove it"
    return problem


def _has_surrogate(value: Any) -> bool:
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, str):
            if any("\ud800" <= character <= "\udfff" for character in each):
                return True
        elif isinstance(each, dict):
            stack.extend(each)
            stack.extend(each.values())
        elif isinstance(each, list | tuple):
            stack.extend(each)
    return False
