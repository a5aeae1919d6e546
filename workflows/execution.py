"""One step, from its inputs to its outcome: a record piped through named steps.

The law: whatever a body does, `execute` answers with an outcome and never raises; whether there is another
attempt is decided here, from the step's own policy, by pure arithmetic.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from celery.exceptions import WorkerShutdown, WorkerTerminate

from ..tasks.errors import (
    ApprovalRejected,
    ChildFailed,
    CompletionRefused,
    DeadlineExceeded,
    DefinitionError,
    EmbedderRefused,
    ExecutionError,
    HeartbeatTimeout,
    InputError,
    LoopLimit,
    OutputError,
    QueueTimeout,
    RunTooLarge,
    StepTimeout,
    ValueTooLarge,
    WaitExpired,
)
from ..tasks.redaction import redact
from ..tasks.retry import Retry
from . import expressions, secret, wire
from .contract import Contract
from .limits import Guard
from .records import Claimed, Json, Outcome
from .states import StepState

RECORD = "record"  # a policy of the engine's own: whoever waits for the step looks at what became of it

_TRACE_CHARS = 8000  # of a traceback; the end says more than the beginning
_MESSAGE_CHARS = 4000
_HERE = Path(__file__).parent
_HOPELESS = (
    InputError,
    OutputError,
    DefinitionError,
    RunTooLarge,
    ValueTooLarge,
    ApprovalRejected,
    CompletionRefused,
    EmbedderRefused,
)  # the next attempt would fail alike

_SELF_EXPLAINING = (
    StepTimeout,
    RunTooLarge,
    QueueTimeout,
    HeartbeatTimeout,
    DeadlineExceeded,
    ValueTooLarge,
    InputError,
    LoopLimit,
    OutputError,
    WaitExpired,
    ApprovalRejected,
    ChildFailed,
)


class Bounds(Protocol):
    """The settings that a body's execution depends on."""

    @property
    def step_timeout(self) -> float:
        """Seconds for a step that sets no timeout."""

    @property
    def timeout_grace(self) -> float:
        """Seconds between the soft limit and the kill."""

    @property
    def value_max_bytes(self) -> int:
        """Bytes of a result at most."""

    def encrypting_keys(self) -> dict[str, bytes]:
        """The keys of secrets at rest, by name."""


def timeout_of(step: Claimed, bounds: Bounds) -> float:
    """The step's time limit in seconds."""
    return float((step.options or {}).get("timeout") or bounds.step_timeout)


def joins(step: Claimed) -> bool:
    """Whether branches meet in the step: then it runs unless all of them were skipped."""
    return "join" in (step.options or ())


def blocked(step: Claimed) -> bool:
    """Whether what was skipped in front of the step skips it as well."""
    return step.blocked > 0 and step.blocked >= (step.options or {}).get("join", 1)


def wanted(step: Claimed, params: Mapping[str, Json], results: Mapping[int | str, Json]) -> bool:
    """Whether the step's condition holds, or it has none."""
    options = step.options or {}
    if "when" not in options:
        return True
    upstream = {name: results.get(idx) for name, idx in (options.get("when_refs") or {}).items()}
    return expressions.evaluate(options["when"], params, upstream)


def execute(
    step: Claimed,
    contract: Contract,
    inputs: Mapping[str, Json],
    context: Callable[[], Any],
    guard: Guard,
    bounds: Bounds,
) -> Outcome:
    """Validate, call, dump; an exception becomes the outcome that the step's policy gives it."""
    began = time.monotonic()
    try:
        if contract.secrets:
            inputs = secret.opened(inputs, contract.secrets, bounds, contract.name)
        arguments = contract.validate(inputs)
        if contract.context_parameter is not None:
            arguments[contract.context_parameter] = context()
        timeout = timeout_of(step, bounds)
        if contract.is_async:
            value = guard.call_async(contract.function(**arguments), timeout, bounds.timeout_grace)
        else:
            value = guard.call(lambda: contract.function(**arguments), timeout, bounds.timeout_grace)
        data = contract.dump(value)
        if len(data) > bounds.value_max_bytes:
            raise ValueTooLarge(f"the result of step {step.name!r}", len(data), bounds.value_max_bytes)
    except (Exception, asyncio.CancelledError) as error:
        return failed(step, error, began)
    except SystemExit as error:
        if _is_shutdown(error):
            raise
        return failed(step, ExecutionError(f"the body called sys.exit({error.code!r})"), began)
    ended = time.monotonic()
    return Outcome(step.idx, step.lease, StepState.SUCCEEDED, data, ran=ended - began, ended=ended)


def _is_shutdown(error: SystemExit) -> bool:
    """Whether Celery ends this process, from a signal handler in the midst of a body; else the body said so itself."""
    if isinstance(error, WorkerShutdown | WorkerTerminate):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    places = [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame in frames]
    if places[-1] == ("billiard.pool", "exit"):
        places.pop()  # a pool process puts this in the place of sys.exit: who called it is what counts
    return places[-1][0].partition(".")[0] in ("billiard", "celery")


def skipped(step: Claimed) -> Outcome:
    """The outcome of a step whose condition is false or that something skipped blocks."""
    return Outcome(step.idx, step.lease, StepState.SKIPPED, blocks=True, ended=time.monotonic())


def failed(step: Claimed, error: BaseException, began: float) -> Outcome:
    """The outcome of an exception: another attempt, or the end of the step as its policy says."""
    ended = time.monotonic()
    retry = Retry.model_validate((step.options or {}).get("retry") or {"attempts": 1})
    outcome = settle(step.idx, step.lease, step.failures + 1, retry, step.options, describe(error, step.name))
    if isinstance(error, _HOPELESS) and outcome.state is StepState.READY:
        outcome = settle(
            step.idx, step.lease, retry.attempts, retry, step.options, describe(error, step.name)
        )
    return outcome._replace(ran=ended - began, ended=ended)


def unkept(outcome: Outcome, error: Exception) -> Outcome:
    """The outcome of a step whose result Postgres refused."""
    message = _clean(f"Postgres cannot keep the result: {error}"[:_MESSAGE_CHARS])
    told = {"step": None, "type": OutputError.__name__, "message": message, "traceback": ""}
    final = Outcome(outcome.idx, outcome.lease, StepState.FAILED, error=told, fault=1, fatal=True)
    return final._replace(ran=outcome.ran, ended=outcome.ended)


def settle(
    idx: int,
    lease: Any,
    failures: int,
    retry: Retry,
    options: Mapping[str, Json] | None,
    error: dict[str, Json],
) -> Outcome:
    """What follows after this many failures: a retry, or what `on_failure` says. Draws the jitter."""
    if retry.allows(failures):
        delay = retry.delay(failures, random.random())  # noqa: S311 (jitter, no secret)
        return Outcome(idx, lease, StepState.READY, error=error, fault=1, delay=delay)
    policy = (options or {}).get("on_failure")
    final = Outcome(idx, lease, StepState.FAILED, error=error, fault=1)
    if policy == RECORD:
        return final
    if policy == "skip":
        return final._replace(blocks=True)
    if isinstance(policy, dict):
        return final._replace(result=wire.dumps(policy["default"]).encode())
    return final._replace(fatal=True)


def describe(error: BaseException, step: str) -> dict[str, Json]:
    """An exception as the journal keeps it: type, message, traceback; no secrets, nothing Postgres refuses."""
    trace = error.__traceback__
    while (
        trace is not None
        and trace.tb_next is not None
        and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_HERE)
    ):
        trace = trace.tb_next  # the frames that lead to the body are ours
    try:
        message = str(error)
        frames = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as broken:
        message, frames = f"({type(broken).__name__} in its __str__)", ""
    if isinstance(error, _SELF_EXPLAINING):
        frames = ""  # the message says it all; the frames would be ours
    return {
        "step": step,
        "type": type(error).__name__,
        "message": _clean(message[:_MESSAGE_CHARS]),
        "traceback": _clean(frames[-_TRACE_CHARS:]),
    }


def _clean(text: str) -> str:
    cleaned: str = redact(text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode())
    return cleaned
