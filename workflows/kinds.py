"""The kinds of step that the engine brings along: their names, and what they take.

The law: signatures only. A step of such a kind is written like any other (`action: trellis.sleep` with its
inputs), so it is validated, planned, drawn and retried like any other; what it does stands in `natives`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AwareDatetime, Field

from . import registry
from .contract import Contract
from .registry import ActionInfo
from .spec import CHILD, TASK

WAIT_FOR = "trellis.wait_for"
APPROVE = "trellis.approve"
SLEEP = "trellis.sleep"
UNTIL = "trellis.until"

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
TaskName = Annotated[str, Field(min_length=1, max_length=400)]


def _wait_for(signal: Text, timeout: Seconds | None = None, default: Any = None) -> Any: ...


def _approve(
    message: str = "",
    show: dict[str, Any] | None = None,
    who: list[Text] | None = None,
    needed: Annotated[int, Field(ge=1)] = 1,
    expires: Seconds | None = None,
    escalate_after: Seconds | None = None,
    escalate_to: list[Text] | None = None,
) -> Any: ...


def _sleep(seconds: Seconds) -> None: ...


def _until(moment: AwareDatetime) -> None: ...


def _child(workflow: str | dict[str, Any], params: dict[str, Any] | None = None) -> Any: ...


def _task(
    task: TaskName,
    args: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    queue: Text | None = None,
    priority: Annotated[int, Field(ge=0, le=9)] | None = None,
) -> Any: ...


_SIGNATURES: dict[str, Callable[..., Any]] = {
    WAIT_FOR: _wait_for,
    APPROVE: _approve,
    SLEEP: _sleep,
    UNTIL: _until,
    CHILD: _child,
    TASK: _task,
}

CONTRACTS = {name: Contract.of(function, name) for name, function in _SIGNATURES.items()}

for _name, _contract in CONTRACTS.items():
    registry.actions.add(ActionInfo(name=_name, contract=_contract))
