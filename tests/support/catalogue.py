"""Actions without Celery, for tests of definitions: a catalogue of plain functions."""

from collections.abc import Callable
from typing import Any

from typing_extensions import TypedDict

from trellis.workflows import registry
from trellis.workflows.contract import Contract
from trellis.workflows.definition import Workflow
from trellis.workflows.registry import ActionInfo


class Table(TypedDict):
    """What `load` returns."""

    rows: int
    months: list[int]
    name: str | None


class Known:
    """Stands for an action: what a definition looks at is its `info`."""

    def __init__(self, info: ActionInfo) -> None:
        self.info = info


actions = registry.Actions()


def known(function: Callable[..., Any], **options: Any) -> Known:
    """A function as an action of this catalogue."""
    info = ActionInfo(function.__name__, Contract.of(function, function.__name__), **options)
    actions.add(info)
    return Known(info)


def _load(url: str) -> Table: ...
def _check(rows: int) -> bool: ...
def _delay(month: int, i: int = 0) -> float: ...
def _anything(**values: Any) -> Any: ...
def _nothing() -> None: ...


def _named(name: str, function: Callable[..., Any]) -> Known:
    function.__name__ = name
    return known(function)


load = _named("load", _load)
check = _named("check", _check)
delay = _named("delay", _delay)
anything = _named("anything", _anything)
nothing = _named("nothing", _nothing)


def workflow(name: str = "test", **options: Any) -> Workflow:
    """A workflow that only this test knows."""
    return Workflow(name, register=False, catalogue=actions, **options)
