"""The bodies that an in-process stack runs: the actions' own, or what a test puts in their place.

The law: a stand-in changes what happens in a body and nothing around it: inputs and result are held to the action's
own contract, retries and limits stay those of the action and the step.
"""

from __future__ import annotations

import inspect
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from ...tasks.errors import DefinitionError
from ...tasks.hints import listed
from ..context import Context
from ..contract import Contract, context_of
from ..registry import ActionInfo, Actions, unknown_action

Moment = Literal["before", "after"]


class WorkerCrash(BaseException):
    """The worker that runs the body vanishes at this line. A stand-in may raise it too."""


class Fault:
    """What one call of a body meets instead of its usual course."""

    def __init__(self, error: BaseException, moment: Moment) -> None:
        self.error = error
        self.moment = moment

    def strike(self, moment: Moment) -> None:
        """Raise the error, if this is its moment."""
        if moment == self.moment:
            raise self.error


class Bodies(Actions):
    """The actions of this process, each with the body that it has here."""

    def __init__(self, known: Actions) -> None:
        super().__init__()
        self._known = known
        self._stand_ins: dict[str, Callable[..., Any]] = {}
        self._made: dict[str, tuple[ActionInfo, ActionInfo]] = {}
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.get = self._get  # type: ignore[assignment]  # for the engine a lookup like any other

    def named(self, action: Any) -> ActionInfo:
        """The action that was meant. Raises DefinitionError where this process knows none of that name."""
        name = action if isinstance(action, str) else action.name
        info = self._known.get(name)
        if info is None:
            raise DefinitionError(unknown_action(name, self._known))
        return info

    def replace(self, action: Any, function: Callable[..., Any]) -> None:
        """Run `function` in the place of an action's body. Raises DefinitionError where it asks for other inputs."""
        info = self.named(action)
        _refuse_misfit(info, function)
        self._stand_ins[info.name] = function
        self._made.pop(info.name, None)

    def disturb(self, action: Any, fault: Callable[[], BaseException], times: int, moment: Moment) -> None:
        """Let the next calls of an action's body fail."""
        self._faults[self.named(action).name].extend(Fault(fault(), moment) for _ in range(times))

    def _get(self, name: str) -> ActionInfo | None:
        info = self._known.get(name)
        if info is None:
            return None
        made = self._made.get(name)
        if made is None or made[0] is not info:
            made = self._made[name] = (info, replace(info, contract=self._watched(info)))
        return made[1]

    def _watched(self, info: ActionInfo) -> Contract:
        contract = info.contract
        body = self._stand_ins.get(info.name, contract.function)
        asked = _asked(contract, body)

        def begin(arguments: Mapping[str, Any]) -> tuple[Fault | None, dict[str, Any]]:
            own = {name: value for name, value in arguments.items() if not isinstance(value, Context)}
            self.calls[info.name].append(own)
            faults = self._faults[info.name]
            fault = faults.popleft() if faults else None
            if fault is not None:
                fault.strike("before")
            return fault, {name: value for name, value in arguments.items() if asked is None or name in asked}

        def call(**arguments: Any) -> Any:
            fault, given = begin(arguments)
            value = body(**given)
            if fault is not None:
                fault.strike("after")
            return value

        async def call_async(**arguments: Any) -> Any:
            fault, given = begin(arguments)
            value = body(**given)
            if inspect.isawaitable(value):
                value = await value
            if fault is not None:
                fault.strike("after")
            return value

        is_async = contract.is_async or inspect.iscoroutinefunction(body)
        context = contract.context_parameter or context_of(body)
        function = call_async if is_async else call
        return replace(contract, function=function, is_async=is_async, context_parameter=context)


def _asked(contract: Contract, body: Callable[..., Any]) -> set[str] | None:
    """The names that a body takes; None where it takes any."""
    parameters = inspect.signature(body).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _refuse_misfit(info: ActionInfo, function: Callable[..., Any]) -> None:
    contract = info.contract
    offered = {*contract.inputs, contract.context_parameter or context_of(function)}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        strange = parameter.name not in offered and not contract.accepts_any
        if strange and parameter.default is inspect.Parameter.empty:
            raise DefinitionError(
                f"the stand-in for action {info.name!r} asks for {parameter.name!r}, which is no input of it "
                f"(it takes {listed(contract.inputs, 'nothing')})"
            )
