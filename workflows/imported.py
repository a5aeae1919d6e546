"""An existing Celery canvas as a workflow: chains, groups and chords of signatures, read as they stand.

The law: what Celery would pass on is passed on. The result of what came before is the first argument, a group's
is the list of its members' (groups in groups are one group, and in a chain a group of one is no group, as for
Celery), and an immutable signature waits and gets nothing. Tasks that are actions of this process become steps of
theirs, all others steps of foreign tasks on their applications' queues. What cannot be said is refused, with its
place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

from celery.canvas import Signature

from ..tasks.errors import DefinitionError
from .references import StepRef
from .registry import ActionInfo, Catalogue
from .signatures import queue_of

_TIMES = ("countdown", "eta", "expires")  # options that the engine has other words for
_UNSAID = {
    **dict.fromkeys(_TIMES, "start the run later, or limit it by timeout="),
    "link": "add a step behind it",
    "link_error": "give the run on_failure=",
    "exchange": "name its queue instead",
    "routing_key": "name its queue instead",
    "shadow": "leave it out",
}
_BUILT_IN = ("celery.map", "celery.starmap", "celery.chunks")


class Target(Protocol):
    """A workflow that is being written."""

    name: str

    def step(self, name: str, action: Any = None, /, **options: Any) -> StepRef:
        """Add a step."""


class Before(NamedTuple):
    """What came before a part of a canvas."""

    value: Any  # what its result is: a reference, or a list of such; None where nothing came before
    ends: tuple[StepRef, ...]  # the steps that it ended with


NOTHING = Before(None, ())


def add(workflow: Target, catalogue: Catalogue, canvas: Any) -> None:
    """Add the steps of a canvas to a workflow that has none. Raises DefinitionError."""
    _Reader(workflow, catalogue).part(canvas, NOTHING, "canvas")


class _Reader:
    """Reads one canvas."""

    def __init__(self, workflow: Target, catalogue: Catalogue) -> None:
        self.workflow = workflow
        self.catalogue = catalogue
        self._names: set[str] = set()

    def part(self, canvas: Any, before: Before, place: str) -> Before:
        """The steps of a part, and what it ends with."""
        if not isinstance(canvas, Signature):
            self._refuse(place, f"is {canvas!r}: a canvas is made of signatures such as task.s(1)")
        kind = canvas.subtask_type
        kwargs: Mapping[str, Any] = canvas.kwargs
        if kind == "chain":
            self._check_options(canvas, place)
            return self._chain(kwargs["tasks"], before, place)
        if kind == "group":
            self._check_options(canvas, place)
            return self._group(kwargs["tasks"], before, place)
        if kind == "chord":
            self._check_options(canvas, place)
            header = kwargs["header"]
            members = header.tasks if isinstance(header, Signature) else list(header)
            middle = self._group(members, before, f"{place}.header")
            return self.part(kwargs["body"], middle, f"{place}.body")
        if canvas.task in _BUILT_IN or kind is not None:
            self._refuse(place, f"{canvas.task} cannot be imported: write it as wf.map(…, over=…)")
        return self._task(canvas, before, place)

    def _chain(self, parts: Sequence[Any], before: Before, place: str) -> Before:
        for number, part in enumerate(parts):
            before = self.part(part, before, f"{place}[{number}]")
            if getattr(part, "subtask_type", None) == "group" and len(before.ends) == 1 == len(before.value):
                before = before._replace(value=before.value[0])
        return before

    def _group(self, parts: Any, before: Before, place: str) -> Before:
        if not isinstance(parts, list | tuple):
            self._refuse(
                place, f"its members are {type(parts).__name__}, and not a list: give a list of signatures"
            )
        members = [self.part(part, before, where) for where, part in _flat(parts, place)]
        if not members:
            self._refuse(place, "it has no members")
        ends = tuple(end for member in members for end in member.ends)
        return Before([member.value for member in members], ends)

    def _task(self, signature: Signature, before: Before, place: str) -> Before:
        self._check_options(signature, place)
        arguments = list(signature.args)
        if before.ends and not signature.immutable:
            arguments.insert(0, before.value)
        options = self._running(signature, place)
        options["after"] = () if before.ends and not signature.immutable else before.ends
        info = self.catalogue.get(signature.task)
        name = self._name(signature.task)
        if info is not None:
            inputs = self._inputs(info, arguments, signature.kwargs, place)
            step = self.workflow.step(name, info.name, inputs=inputs, **options)
        else:
            step = self.workflow.step(
                name, task=signature.task, args=arguments, kwargs=dict(signature.kwargs), **options
            )
        return Before(step, (step,))

    def _inputs(
        self, info: ActionInfo, arguments: list[Any], named: Mapping[str, Any], place: str
    ) -> dict[str, Any]:
        names = list(info.contract.inputs)
        if len(arguments) > len(names):
            self._refuse(
                place, f"{len(arguments)} arguments, with the result of what came before, for the "
                f"{len(names)} inputs of action {info.name!r}: make it immutable with .si(…), or give fewer"
            )  # fmt: skip
        given = dict(zip(names, arguments, strict=False))
        twice = next((name for name in named if name in given), None)
        if twice is not None:
            self._refuse(place, f"input {twice!r} of action {info.name!r} is given by position and by name")
        return {**given, **named}

    def _running(self, signature: Signature, place: str) -> dict[str, Any]:
        """The options of a step, from those of a signature."""
        given, options = signature.options, {}
        is_action = self.catalogue.get(signature.task) is not None
        queue = given.get("queue") if is_action else queue_of(signature)
        if queue is not None:
            options["queue"] = str(getattr(queue, "name", queue))
        if given.get("priority") is not None:
            if not 0 <= given["priority"] <= 9:
                self._refuse(place, f"priority {given['priority']!r} is not one of 0 … 9")
            options["priority"] = 9 - given["priority"]  # on Redis 0 is the most urgent, here 9
        limit = given.get("soft_time_limit") or given.get("time_limit")
        if limit is not None:
            options["timeout"] = limit
        return options

    def _check_options(self, signature: Signature, place: str) -> None:
        for name, instead in _UNSAID.items():
            if signature.options.get(name):
                self._refuse(place, f"its option {name} has no like here: {instead}")

    def _name(self, task: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_-]", "_", task.rpartition(".")[2]) or "step"
        base = base if re.match(r"[A-Za-z_]", base) else f"_{base}"
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def _refuse(self, place: str, problem: str) -> NoReturn:
        raise DefinitionError(f"{place}: {problem}", workflow=self.workflow.name)


def _flat(parts: Sequence[Any], place: str) -> list[tuple[str, Any]]:
    """The members of a group with their places; those of groups inside it are its own."""
    found: list[tuple[str, Any]] = []
    for number, part in enumerate(parts):
        where = f"{place}[{number}]"
        if (
            isinstance(part, Signature)
            and part.subtask_type == "group"
            and isinstance(part.tasks, list | tuple)
        ):
            found += _flat(part.tasks, where)
        else:
            found.append((where, part))
    return found
