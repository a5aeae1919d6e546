"""Fragments: steps that a running step adds to its own run.

The law: a fragment is written and checked like a workflow, in Python or as data. It has no parameters, since
whoever writes it knows the values; besides its own steps it may use those that its run has finished.

    more = ctx.fragment()
    found = more.step("search", search, q=question)
    more.step("read", read, url=found["url"], notes=more.done("notes"))
    ctx.append(more)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ..tasks.errors import DefinitionError
from . import registry
from .definition import Workflow
from .parsing import spec_of
from .references import NAME, Path, Ref, Reference, references
from .registry import Catalogue
from .spec import WorkflowSpec

MAX_NAME = 500  # characters of a step's whole name
_FULL_NAME = re.compile(rf"{NAME}(\[\d+\])?(\.{NAME}(\[\d+\])?)*")
_PARTS = re.compile(rf"({NAME})|\[(\d+)\]")


class DoneRef(Ref):
    """The result of a step that the run has finished."""

    __slots__ = ()


class Fragment(Workflow):
    """Steps to be appended to a run: `ctx.fragment()`."""

    fragment: ClassVar[bool] = True

    def __init__(
        self,
        name: str = "fragment",
        *,
        description: str = "",
        register: bool = False,
        catalogue: Catalogue = registry.actions,
    ) -> None:
        """Begin a fragment; its name stands in messages only."""
        super().__init__(name, description=description, register=register, catalogue=catalogue)

    def done(self, step: str) -> Ref:
        """The result of a step that the run has finished, by its whole name (`plan.search`, `each[3]`).

        Raises DefinitionError for what cannot be a step's name; whether there is such a step is looked up by `append`.
        """
        if _FULL_NAME.fullmatch(step) is None:
            raise DefinitionError(f"{step!r} is no name of a step", workflow=self.name)
        first, *rest = [name or int(number) for name, number in _PARTS.findall(step)]
        return DoneRef(self, "run", str(first), tuple(rest))


def fragment_of(steps: Workflow | WorkflowSpec | Mapping[str, Any], name: str) -> WorkflowSpec:
    """The definition of what is to be appended, checked. Raises DefinitionError."""
    if isinstance(steps, Workflow):
        spec = steps.spec
    elif isinstance(steps, WorkflowSpec):
        spec = steps
    elif isinstance(steps, Mapping):
        spec = spec_of({"name": name, **steps})
    else:
        raise DefinitionError(
            f"append takes ctx.fragment(), a Workflow, or an object with steps, not {type(steps).__name__}"
        )
    head = spec.model_dump(exclude_defaults=True, exclude={"name", "description", "params", "steps"})
    if head:
        raise DefinitionError(
            f"a fragment has steps alone: {', '.join(head)} is said of a whole run, in its workflow",
            workflow=spec.name,
        )
    if spec.params:
        raise DefinitionError(
            f"a fragment has no parameters ({', '.join(spec.params)}): write the values into its steps",
            workflow=spec.name,
        )
    return spec if isinstance(steps, Fragment) else Fragment.from_spec(spec).spec


def uses(spec: WorkflowSpec) -> Iterator[tuple[str, Reference]]:
    """The references of a fragment to finished steps of the run, each with the step that has it."""
    for name, step in spec.steps.items():
        for _, hole in step.places:
            for reference in references(hole):
                if reference.kind == "run":
                    yield name, reference


def readings(reference: Reference) -> list[tuple[str, Path]]:
    """What `${run.plan.search.url}` may mean, as (step, path in its result), the longest name first.

    Pure: which of them it is depends on the steps that the run has.
    """
    name = reference.name
    found = [(name, reference.path)]
    for position, part in enumerate(reference.path):
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
        found.append((name, reference.path[position + 1 :]))
    return found[::-1]
