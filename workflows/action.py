"""Actions: plain functions that are Celery tasks and workflow steps at once.

The law: an action is defined once and runs in three ways, told apart by the message: `.delay(…)` is a plain
Celery job, a bundle of step ids is durable work from the journal, and a canvas carries its own data.
Options that do not exist are refused where the action is defined.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload
from uuid import uuid4

from celery import Task

from ..tasks.app import app
from ..tasks.errors import DefinitionError, InputError
from ..tasks.hints import did_you_mean, listed
from ..tasks.retry import Retry
from ..tasks.settings import current
from . import canvas, draining, registry
from .context import Context
from .contract import Contract
from .dispatch import BUNDLE, RANKED, unpack
from .effects import POLICIES, PROBE
from .engine import engine
from .registry import PLAIN, ActionInfo

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("name", "retries", "timeout", "queue", "priority", "effects", "in_doubt", "expect")
_EFFECTS = ("repeatable", "once")


class Action(Task, Generic[P, R]):
    """A function as a Celery task and as a step; made by `@action`."""

    abstract = True
    Request = "trellis.workflows.requests:Request"
    typing = False  # inputs are checked by the contract, which knows types as well as names
    ignore_result = None  # as the application says

    contract: Contract
    info: ActionInfo

    def __init__(self, info: ActionInfo) -> None:
        self.info = info
        self.contract = info.contract
        self.name = info.name
        self.__doc__ = info.contract.function.__doc__
        self.__module__ = info.contract.function.__module__
        if info.queue is not None:
            self.queue = info.queue
        self.priority = 9 - info.priority

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What a worker does with a message of this action; in a plain process, the function itself."""
        if BUNDLE in kwargs:
            if not draining.passed_on(self, kwargs):
                run, packed = kwargs[BUNDLE]
                engine().run_bundle(self.name, run, unpack(packed), kwargs.get(RANKED))
            return None
        step = kwargs.get(canvas.STEP)
        retry = Retry.model_validate(step["retry"]) if step and "retry" in step else self.info.retry
        try:
            if step is not None:
                return canvas.run_canvas(self._call, self.contract, step, *args)
            return self._call(self._named(args, kwargs))
        except Exception as error:
            failures = self.request.retries + 1
            if self.request.called_directly or isinstance(error, InputError) or not retry.allows(failures):
                raise
            delay = retry.delay(failures, random.random())  # noqa: S311 (jitter, no secret)
            raise self.retry(exc=error, countdown=delay, max_retries=retry.attempts) from error

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Send a job. Raises InputError, before anything is sent, where the inputs do not fit."""
        if not (kwargs and (BUNDLE in kwargs or canvas.STEP in kwargs)):
            self.contract.validate(self._named(args or (), kwargs or {}))
        return super().apply_async(args, kwargs, *rest, **options)

    def _named(self, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = list(self.contract.inputs)
        if len(args) > len(names):
            raise InputError(self.name, {"inputs": f"{len(args)} values for {len(names)} parameters"})
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def _call(self, inputs: Mapping[str, Any]) -> Any:
        """The body on its own, outside any run."""
        arguments = self.contract.validate(inputs)
        if self.contract.context_parameter is not None:
            arguments[self.contract.context_parameter] = self._loose_context()
        if self.contract.is_async:
            return asyncio.run(self.contract.function(**arguments))
        return self.contract.function(**arguments)

    def _loose_context(self) -> Context:
        run = self.request.id or str(uuid4())
        return Context(run, "", self.name, self.request.retries + 1, run, current().artifacts_root())


@overload
def action(function: Callable[P, R], /) -> Action[P, R]: ...


@overload
def action(
    *,
    name: str | None = None,
    retries: int | Retry = 0,
    timeout: float | None = None,
    queue: str | None = None,
    priority: int = 5,
    effects: Literal["repeatable", "once"] = "repeatable",
    in_doubt: Literal["ask", "retry"] | Callable[..., Any] = "ask",
    expect: float | None = None,
) -> Callable[[Callable[P, R]], Action[P, R]]: ...


def action(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function an action.

    name: the task's name; `module.function` without it.
    retries: attempts after the first, or a whole `Retry` policy.
    timeout: seconds one attempt may run (soft; the kill follows after TRELLIS_TIMEOUT_GRACE).
    queue: the Celery queue; TRELLIS_DEFAULT_QUEUE without it.
    priority: 0 to 9, 9 is the most urgent.
    effects: "once" for bodies that change the outside world and must not do so twice: announced before they begin
        (see `in_doubt`), and recorded alone, before anything else runs.
    in_doubt: of effects="once": what follows when the worker is lost in the midst of the body. "ask": nothing, until
        somebody says what became of it (`client.resolve`); "retry": a new attempt with the same idempotency key; or
        a probe: a function of the same inputs that looks, and returns `Happened(result)` or None.
    expect: seconds that one attempt is expected to take, for longest path first; measured without it.

    Raises DefinitionError for an unknown option or a value out of range.
    """
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        raise DefinitionError(
            f"@action has no option {unknown[0]!r}{did_you_mean(unknown[0], _OPTIONS)} (it has {listed(_OPTIONS)})"
        )
    if function is not None:
        return _define(function, {})
    return lambda body: _define(body, options)


def _module_of(function: Callable[..., Any]) -> str:
    """The name under which a worker imports the function's module; a script's is that of its file."""
    if function.__module__ != "__main__":
        return function.__module__
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m package.module
        return main.__spec__.name
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _seconds(name: str, expect: Any) -> float | None:
    if expect is None:
        return None
    number = isinstance(expect, int | float) and not isinstance(expect, bool)
    if not number or not 0 <= expect < math.inf:
        raise DefinitionError(f"action {name!r}: expect {expect!r} is not a number of seconds from 0 on")
    return float(expect)


def _in_doubt(name: str, contract: Contract, effects: str, given: Any) -> tuple[str | None, Contract | None]:
    """The policy of an action whose effect happens once, and its probe."""
    if effects != "once":
        if given is not None:
            raise DefinitionError(f'action {name!r}: in_doubt= goes with effects="once"')
        return None, None
    if given is None or (isinstance(given, str) and given in POLICIES):
        return given or POLICIES[0], None
    if not callable(given):
        raise DefinitionError(
            f"action {name!r}: in_doubt {given!r} is neither one of {listed(POLICIES)} nor a function that probes"
        )
    probe = Contract.of(given, f"{name} (probe)")
    if set(probe.inputs) != set(contract.inputs):
        raise DefinitionError(
            f"action {name!r}: its probe takes {listed(probe.inputs)} instead of the action's inputs, "
            f"{listed(contract.inputs)}"
        )
    return PROBE, probe


def _define(function: Callable[..., Any], options: dict[str, Any]) -> Action[Any, Any]:
    name = options.get("name") or f"{_module_of(function)}.{function.__qualname__}"
    priority, timeout = options.get("priority", 5), options.get("timeout")
    effects, retries = options.get("effects", "repeatable"), options.get("retries", 0)
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 9:
        raise DefinitionError(
            f"action {name!r}: priority {priority!r} is not one of 0 … 9 (9 is the most urgent)"
        )
    if timeout is not None and (not isinstance(timeout, int | float) or not 0 < timeout < float("inf")):
        raise DefinitionError(f"action {name!r}: timeout {timeout!r} is not a number of seconds above 0")
    if effects not in _EFFECTS:
        raise DefinitionError(f"action {name!r}: effects {effects!r} is not one of {listed(_EFFECTS)}")
    number = isinstance(retries, int) and not isinstance(retries, bool) and retries >= 0
    if not number and not isinstance(retries, Retry):
        raise DefinitionError(
            f"action {name!r}: retries {retries!r} is neither a number from 0 on nor a Retry"
        )
    queue = options.get("queue")
    if queue is not None and (not isinstance(queue, str) or not 0 < len(queue) <= 200):
        raise DefinitionError(f"action {name!r}: queue {queue!r} is not a name of 1 to 200 characters")
    contract = Contract.of(function, name)
    in_doubt, probe = _in_doubt(name, contract, effects, options.get("in_doubt"))
    retry = retries if isinstance(retries, Retry) else Retry(attempts=retries + 1)
    info = ActionInfo(
        name=name,
        contract=contract,
        queue=queue,
        priority=priority,
        retry=PLAIN if retry == PLAIN else retry,
        timeout=timeout,
        effects=effects,
        in_doubt=in_doubt,
        probe=probe,
        expect=_seconds(name, options.get("expect")),
    )
    registry.actions.add(info)
    task: Action[Any, Any] = app.register_task(Action(info))
    return task
