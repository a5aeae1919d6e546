"""The actions and workflows that this process knows, by name.

The law: a name means one thing. The same function or definition may be registered again (a module is
imported twice, a worker reloads); another one under a taken name is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..tasks.errors import DefinitionError
from ..tasks.hints import choices
from ..tasks.retry import Retry
from .contract import Contract

PLAIN = Retry()  # one attempt


@dataclass(frozen=True, slots=True)
class ActionInfo:
    """What a definition needs to know of an action."""

    name: str
    contract: Contract
    queue: str | None = None
    priority: int = 5
    retry: Retry = PLAIN
    timeout: float | None = None
    effects: str = "repeatable"
    expect: float | None = None  # seconds
    in_doubt: str | None = (
        None  # what becomes of a step whose effect may have happened; None: it may be repeated
    )
    probe: Contract | None = None  # the function that says whether it has


class Catalogue(Protocol):
    """Where a definition looks its actions up."""

    def get(self, name: str) -> ActionInfo | None:
        """The action, or None."""

    def names(self) -> list[str]:
        """All names, sorted."""


class Actions:
    """The actions of this process; a `Catalogue`."""

    def __init__(self) -> None:
        self._infos: dict[str, ActionInfo] = {}
        # The lookup itself, without a method around it: validation and planning ask once per step.
        self.get = self._infos.get

    def add(self, info: ActionInfo) -> None:
        """Register an action. Raises DefinitionError where another function has the name."""
        known = self._infos.get(info.name)
        if known is not None and _place(known) != _place(info):
            raise DefinitionError(
                f"action {info.name!r} is defined twice, in {_place(known)} and in {_place(info)}: "
                "give one of them another name with `@action(name=…)`"
            )
        self._infos[info.name] = info

    def names(self) -> list[str]:
        """The names of the users' actions, sorted; those of the engine's own kinds begin with `trellis.`."""
        return sorted(name for name in self._infos if not name.startswith("trellis."))

    def discard(self, name: str) -> None:
        """Forget an action, if it is there."""
        self._infos.pop(name, None)

    def __iter__(self) -> Iterator[ActionInfo]:
        return iter(list(self._infos.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __len__(self) -> int:
        return len(self._infos)


class Registered(Protocol):
    """What the registry asks of a workflow."""

    @property
    def name(self) -> str:
        """Its name."""

    def digest(self) -> str:
        """The digest of its definition. Raises DefinitionError while that is wrong."""


class Workflows:
    """The workflows of this process."""

    def __init__(self) -> None:
        self._workflows: dict[str, Any] = {}

    def add(self, workflow: Registered) -> None:
        """Register a workflow that may still grow; the first one keeps the name (see `settle`)."""
        self._workflows.setdefault(workflow.name, workflow)

    def settle(self, workflow: Registered, digest: str) -> None:
        """Compare a finished definition with the one that holds its name.

        Raises DefinitionError where that is another definition. A holder that is itself wrong loses the name.
        """
        holder = self._workflows.get(workflow.name)
        if holder is None or holder is workflow:
            return
        try:
            other = holder.digest()
        except DefinitionError:
            self._workflows[workflow.name] = workflow
            return
        if other != digest:
            raise DefinitionError(
                "another workflow of this name is defined in this process: give one of them another name "
                "(or `Workflow(..., register=False)` for one that nobody looks up by its name)",
                workflow=workflow.name,
            )

    def get(self, name: str) -> Any | None:
        """The workflow, or None."""
        return self._workflows.get(name)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._workflows)

    def discard(self, name: str) -> None:
        """Forget a workflow, if it is there."""
        self._workflows.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._workflows

    def __len__(self) -> int:
        return len(self._workflows)


class Schedules:
    """The schedules that the modules of this process declare."""

    def __init__(self) -> None:
        self._schedules: dict[str, Any] = {}

    def add(self, declared: Any) -> None:
        """Register a schedule. Raises DefinitionError where another workflow has one of that name."""
        known = self._schedules.get(declared.name)
        if known is not None and known.workflow.name != declared.workflow.name:
            raise DefinitionError(
                f"schedule {declared.name!r} is declared twice, by workflow {known.workflow.name!r} as well: give "
                "one of them another name",
                workflow=declared.workflow.name,
            )
        self._schedules[declared.name] = declared

    def values(self) -> list[Any]:
        """All of them, by name."""
        return [self._schedules[name] for name in sorted(self._schedules)]

    def discard(self, name: str) -> None:
        """Forget a schedule, if it is there."""
        self._schedules.pop(name, None)


def unknown_action(name: str, catalogue: Catalogue) -> str:
    """The refusal of an action that is not there."""
    return (
        f"there is no action {name!r} in this process: import the module that defines it, or name that "
        f"module with --import or in TRELLIS_IMPORTS{choices(name, catalogue.names(), 'there are')}"
    )


def _place(info: ActionInfo) -> str:
    function = info.contract.function
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"


actions = Actions()
workflows = Workflows()
schedules = Schedules()
