"""Every error that Trellis raises, in one tree.

The law: an error says what is wrong and what to do, and carries the facts as attributes, so that
a program never has to read a message. Whatever a user can meet derives from `TrellisError`.

    TrellisError
    ├── ConfigurationError          a setting, an address or an installation is wrong
    │   ├── MissingExtra            an optional package is not installed
    │   ├── MissingExtension        the database lacks an extension of Postgres
    │   ├── IsolationMissing        the database would not keep tenants of the memory apart
    │   ├── ModelMismatch           an embedding model has other dimensions than the memories that it made
    │   ├── ModelMoved              the memories of an embedding model have vectors of another one now
    │   └── SchemaMismatch          the database's tables are older or newer than this code
    ├── DefinitionError             a workflow, action or expression was written wrongly
    │   ├── CycleError              steps wait for each other in a circle
    │   └── ParameterError          a run was started with wrong parameters
    ├── EntryError                  what a memory was given or asked cannot be kept or answered
    │   └── BadRecord               a row of a file that is imported cannot be taken
    ├── CommunicationError          Postgres or the broker cannot be reached
    ├── EmbeddingError              texts could not be turned into vectors
    │   ├── TextRefused             one of the texts is none that a model can read
    │   ├── EmbedderRefused         a key, a model or dimensions are wrong
    │   └── EmbedderUnavailable     an endpoint or a worker does not answer now
    ├── CompletionError             a language model gave no answer that can be used
    │   ├── CompletionRefused       a key, a model or an address is wrong, or the prompt is too long
    │   ├── CompletionUnavailable   an endpoint does not answer now
    │   └── AnswerUnusable          the model declined, or answered something else than what was asked for
    ├── StackError                  a process of the local stack does not start, or keeps dying
    ├── ResourceError               a limit was passed
    │   ├── RunTooLarge             a run would have more steps than a run may
    │   └── ValueTooLarge           a value is larger than the journal or a memory takes
    ├── ExecutionError              a step or a run did not succeed
    │   ├── InputError              a step's inputs do not fit its action
    │   ├── OutputError             an action returned what it does not declare, or what JSON cannot hold
    │   ├── StepTimeout             a step ran longer than its limit
    │   ├── LoopLimit               a loop took all the turns that it may, and its condition does not hold
    │   ├── QueueTimeout            no worker took a ready step in time
    │   ├── HeartbeatTimeout        a body was silent for longer than its step allows
    │   ├── DeadlineExceeded        a run was not over at its deadline
    │   ├── WorkerLost              a step's worker vanished without a word
    │   ├── WaitExpired             what a step waited for did not come in time
    │   ├── ApprovalRejected        somebody who may approve said no
    │   ├── ChildFailed             the child run of a step did not succeed
    │   ├── TaskFailed              a foreign Celery task failed, and its worker does not say why
    │   ├── SecretError             an encrypted value cannot be opened
    │   ├── EffectInDoubt           a step's effect may or may not have happened, and somebody gave it up
    │   ├── StepCancelled           the run of a running body was cancelled, or its lease was lost
    │   ├── RunFailed               the run ended as failed
    │   └── RunCancelled            the run ended as cancelled
    └── StateError                  what was asked for does not fit the present state
        ├── IllegalMove             a step or run cannot go from this state to that one
        ├── ConflictError           the name is taken by something else
        ├── NotFound                there is no such run, step or workflow
        ├── DeploymentMismatch      open runs need actions or inputs that this code does not have
        ├── NotPermitted            who asks may not do this
        ├── ApprovalStale           what was approved is not what is shown
        ├── ArtifactPurged          an artifact was not kept for so long
        ├── NotFinished             the run has no result yet
        ├── NotInProcess            an in-process stack (trellis.workflows.testing) cannot do it
        ├── Stalled                 nothing that an in-process stack could wait for would end the run
        └── WaitTimeout             the run did not end within the time given
"""

from __future__ import annotations

from collections.abc import Sequence


class TrellisError(Exception):
    """The base of all errors of Trellis."""


class ConfigurationError(TrellisError):
    """A setting, an address or an installation is wrong."""


class MissingExtra(ConfigurationError):
    """An optional package is not installed."""

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra = extra
        self.command = f"pip install 'celery-trellis[{extra}]'"
        super().__init__(f"{purpose} needs the extra {extra!r}: {self.command}")


class MissingExtension(ConfigurationError):
    """The database lacks the extension `extension` of Postgres."""

    def __init__(self, extension: str, purpose: str) -> None:
        self.extension = extension
        super().__init__(
            f"the database has no extension {extension!r}, and {purpose}: install pgvector 0.8 or newer on the server "
            f"(the embedded one of `trellis up` has it), run CREATE EXTENSION {extension} in this database as a "
            "superuser, then `trellis migrate`"
        )


class IsolationMissing(ConfigurationError):
    """The database would not keep tenants of the memory apart; `problem` says why."""

    def __init__(self, problem: str, fix: str) -> None:
        self.problem = problem
        super().__init__(f"memories are not opened, since tenants would not be kept apart: {problem}; {fix}")


class ModelMismatch(ConfigurationError):
    """The embedding model `model` makes vectors of `dims` dimensions; those of its memories have `found`."""

    def __init__(self, model: str, dims: int, found: int) -> None:
        self.model = model
        self.dims = dims
        self.found = found
        super().__init__(
            f"the embedding model {model!r} makes vectors of {dims} dimensions, its memories have {found}: give a "
            "model that was changed a name of its own, and copy the memories over to it (`trellis memory reindex`)"
        )


class ModelMoved(ConfigurationError):
    """The memories of the embedding model `model` have vectors of `successor` now."""

    def __init__(self, model: str, successor: str) -> None:
        self.model = model
        self.successor = successor
        super().__init__(
            f"the memories of the embedding model {model!r} have vectors of {successor!r} now: let TRELLIS_EMBEDDER "
            "choose that one and start this process anew, or make them anew for this one (`trellis memory reindex`)"
        )


class SchemaMismatch(ConfigurationError):
    """The database's tables are older or newer than this code."""

    def __init__(self, found: str | None, expected: str, advice: str) -> None:
        self.found = found
        self.expected = expected
        super().__init__(
            f"the database is at schema {found or 'none'}, this version of Trellis needs {expected}: {advice}"
        )


class DefinitionError(TrellisError):
    """A workflow, action or expression was written wrongly.

    `workflow` and `step` name the place, where there is one.
    """

    def __init__(self, message: str, *, workflow: str | None = None, step: str | None = None) -> None:
        self.workflow = workflow
        self.step = step
        place = ", ".join(
            f"{kind} {name!r}" for kind, name in (("workflow", workflow), ("step", step)) if name is not None
        )
        super().__init__(f"{place}: {message}" if place else message)


class CycleError(DefinitionError):
    """Steps wait for each other in a circle; `path` names them, the first one again at the end."""

    def __init__(self, path: Sequence[str], *, workflow: str | None = None) -> None:
        self.path = tuple(path)
        super().__init__(
            f"the steps wait for each other in a circle: {' → '.join(path)}; remove one of these dependencies",
            workflow=workflow,
        )


class ParameterError(DefinitionError):
    """A run was started with wrong parameters; `problems` maps each parameter to what is wrong with it."""

    def __init__(self, problems: dict[str, str], *, workflow: str | None = None) -> None:
        self.problems = problems
        text = "; ".join(f"parameter {name!r}: {problem}" for name, problem in problems.items())
        super().__init__(text, workflow=workflow)


class EntryError(TrellisError, ValueError):
    """What a memory was given or asked cannot be kept or answered: the argument `field` has a `problem`."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class BadRecord(EntryError):
    """Row `line` of `file` cannot be taken; `field` and `problem` say why."""

    def __init__(self, file: str, line: int, error: Exception) -> None:
        self.file = file
        self.line = line
        field = getattr(error, "field", None) or getattr(error, "what", "record")
        super().__init__(str(field), str(error).removeprefix(f"{field}: "))
        self.args = (f"{file}, line {line:,}: {error}; mend it, or put such rows aside with --skip-bad",)


class CommunicationError(TrellisError):
    """Postgres or the broker cannot be reached."""


class EmbeddingError(TrellisError):
    """Texts could not be turned into vectors by `model`; `problem` says why."""

    def __init__(self, model: str, problem: str) -> None:
        self.model = model
        self.problem = problem
        super().__init__(f"embedder {model}: {problem}")


class TextRefused(EmbeddingError):
    """One of the texts is none that a model can read; `index` is its place, None where it is all of them."""

    def __init__(self, model: str, index: int | None, problem: str) -> None:
        self.index = index
        super().__init__(model, problem if index is None else f"text {index}: {problem}")


class EmbedderRefused(EmbeddingError):
    """A key, a model or dimensions are wrong; asking again does not help before a setting has changed."""


class EmbedderUnavailable(EmbeddingError):
    """An endpoint or a worker does not answer now; asking again later may help.

    `retry_after` has the seconds for which an endpoint asks to be left alone, where it says so.
    """

    def __init__(self, model: str, problem: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(model, problem)


class CompletionError(TrellisError):
    """The language model `model` gave no answer that can be used; `problem` says why."""

    def __init__(self, model: str, problem: str) -> None:
        self.model = model
        self.problem = problem
        super().__init__(f"language model {model}: {problem}")


class CompletionRefused(CompletionError):
    """A key, a model or an address is wrong, or the prompt is too long: a setting has to change before another try."""


class CompletionUnavailable(CompletionError):
    """An endpoint does not answer now; asking again later may help.

    `retry_after` has the seconds for which it asks to be left alone, where it says so.
    """

    def __init__(self, model: str, problem: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(model, problem)


class AnswerUnusable(CompletionError):
    """The model declined, or answered something else than what was asked for; another try may go better."""


class StackError(TrellisError):
    """A process of the local stack, `service`, does not start, or keeps dying; `log` ends its log."""

    def __init__(self, service: str, problem: str, log: str) -> None:
        self.service = service
        self.problem = problem
        self.log = log
        super().__init__(f"{service} {problem}; {log}")


class ResourceError(TrellisError):
    """A limit was passed."""


class RunTooLarge(ResourceError):
    """A growing run would have more steps (`steps`) than a run may (`limit`)."""

    def __init__(self, steps: int, limit: int) -> None:
        self.steps = steps
        self.limit = limit
        super().__init__(
            f"the run would have {steps:,} steps, the limit is {limit:,}: look whether it grows without an end, "
            "start child runs, or raise TRELLIS_RUN_MAX_STEPS"
        )


class ValueTooLarge(ResourceError):
    """A value is larger than the journal or a memory takes (`size` and `limit` in bytes)."""

    def __init__(
        self,
        what: str,
        size: int,
        limit: int,
        remedy: str = "write it with `ctx.artifact(...)` and return that reference, or raise TRELLIS_VALUE_MAX_BYTES",
    ) -> None:
        self.what = what
        self.size = size
        self.limit = limit
        super().__init__(f"{what} is {size:,} bytes of JSON, the limit is {limit:,}: {remedy}")


class ExecutionError(TrellisError):
    """A step or a run did not succeed."""


class InputError(ExecutionError):
    """A step's inputs do not fit its action; `problems` maps each input to what is wrong with it."""

    def __init__(self, action: str, problems: dict[str, str]) -> None:
        self.action = action
        self.problems = problems
        text = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        super().__init__(f"action {action!r} does not take these inputs: {text}")


class OutputError(ExecutionError):
    """An action returned what it does not declare, or what JSON cannot hold."""

    def __init__(self, action: str, problem: str) -> None:
        self.action = action
        super().__init__(f"action {action!r} returned a value that cannot be kept: {problem}")


class StepTimeout(ExecutionError):
    """A step ran longer than its limit of `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the step ran longer than its timeout of {seconds:g} s")


class LoopLimit(ExecutionError):
    """A loop took all the turns that it may (`limit`), and its condition (`until`) does not hold."""

    def __init__(self, step: str, limit: int, until: str) -> None:
        self.step = step
        self.limit = limit
        self.until = until
        super().__init__(
            f"after {limit} {'turn' if limit == 1 else 'turns'} of loop {step!r}, {until!r} is still not true: raise "
            'limit=, or let on_limit="stop" take the last result'
        )


class QueueTimeout(ExecutionError):
    """No worker took a ready step within its `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(
            f"no worker took the step within its queue_timeout of {seconds:g} s: start more workers for its queue, or "
            "allow it more time"
        )


class HeartbeatTimeout(ExecutionError):
    """A body did not call `ctx.heartbeat()` for its `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the body was silent for longer than its heartbeat of {seconds:g} s")


class DeadlineExceeded(ExecutionError):
    """A run was not over when its `seconds` had passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the run was not over at its deadline, {seconds:g} s after its start")


class WorkerLost(ExecutionError):
    """A step's worker vanished without a word."""


class WaitExpired(ExecutionError):
    """What a step waited for did not come within its `seconds`."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"{what} did not come within {seconds:g} s")


class ApprovalRejected(ExecutionError):
    """Somebody who may approve said no: `by`, with a `comment`."""

    def __init__(self, step: str, by: str, comment: str) -> None:
        self.step = step
        self.by = by
        self.comment = comment
        super().__init__(f"{by} rejected {step!r}" + (f": {comment}" if comment else ""))


class ChildFailed(ExecutionError):
    """The child run `run_id` of a step ended as `state`; `error` (a mapping with type, message, step) says why."""

    def __init__(self, run_id: str, workflow: str, state: str, error: dict[str, object]) -> None:
        self.run_id = run_id
        self.workflow = workflow
        self.state = state
        self.error = error
        why = f": step {error.get('step')!r}: {error.get('type')}: {error.get('message')}" if error else ""
        super().__init__(f"child run {run_id} of workflow {workflow!r} ended as {state}{why}")


class TaskFailed(ExecutionError):
    """The foreign Celery task `name` failed under the id `task`, and its worker does not say why."""

    def __init__(self, name: str, task: str, reason: str) -> None:
        self.name = name
        self.task = task
        super().__init__(
            f"task {name!r} failed (its id is {task}; the log of its worker has the error): {reason}"
        )


class SecretError(ExecutionError):
    """An encrypted value cannot be opened: its key is missing here, or it was changed."""


class EffectInDoubt(ExecutionError):
    """A step's effect may or may not have happened, and somebody gave it up."""


class StepCancelled(ExecutionError):
    """The run of a running body was cancelled, or its lease was lost; raised inside the body."""


class RunFailed(ExecutionError):
    """The run ended as failed; `step` and `error` (a mapping with type, message, traceback) say why."""

    def __init__(self, run_id: str, step: str | None, error: dict[str, object]) -> None:
        self.run_id = run_id
        self.step = step
        self.error = error
        where = f"step {step!r}: " if step else ""
        super().__init__(f"run {run_id} failed: {where}{error.get('type')}: {error.get('message')}")


class RunCancelled(ExecutionError):
    """The run ended as cancelled."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id} was cancelled")


class StateError(TrellisError):
    """What was asked for does not fit the present state."""


class IllegalMove(StateError):
    """A step or run cannot go from `source` to `target`."""

    def __init__(self, kind: str, source: str, target: str) -> None:
        self.kind = kind
        self.source = source
        self.target = target
        super().__init__(f"a {kind} cannot go from {source} to {target}")


class ConflictError(StateError):
    """The name is taken by something else."""


class NotFound(StateError):
    """There is no such run, step or workflow."""

    def __init__(self, kind: str, name: str, advice: str = "") -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"there is no {kind} {name!r}" + (f": {advice}" if advice else ""))


class NotPermitted(StateError):
    """`by` may not do this; `who` may."""

    def __init__(self, what: str, by: str, who: Sequence[str]) -> None:
        self.by = by
        self.who = tuple(who)
        super().__init__(f"{by!r} may not {what}: {', '.join(who)} may")


class ApprovalStale(StateError):
    """What was approved, under the digest `seen`, is not what is shown now, under `shown`."""

    def __init__(self, step: str, seen: str, shown: str) -> None:
        self.step = step
        self.seen = seen
        self.shown = shown
        super().__init__(
            f"what step {step!r} shows is now {shown}, and {seen} was seen: look at it again, then decide"
        )


class ArtifactPurged(StateError, FileNotFoundError):
    """The artifacts of the run `run` are kept for a shorter time than it is, and `uri` was one of them."""

    def __init__(self, uri: str, run: str) -> None:
        self.uri = uri
        self.run = run
        super().__init__(
            f"{uri} was purged by retention: the artifacts of run {run} are kept for a shorter time than it is "
            "(`trellis retention list`); rerun it from the step that writes this one"
        )


class DeploymentMismatch(StateError):
    """Open runs need actions or inputs that this code does not have.

    `misfits` has for each step of a workflow its `workflow`, `step`, `action`, `problem` and `runs`.
    """

    def __init__(self, misfits: Sequence[object]) -> None:
        self.misfits = tuple(misfits)
        lines = "\n".join(f"  {each}" for each in self.misfits)
        super().__init__(
            f"this code does not fit runs that are open:\n{lines}\n"
            "their steps wait for a worker that fits: give the actions their old names and inputs again, keep a worker "
            "with the old code until these runs are over, or cancel them and rerun them with changed inputs"
        )


class NotFinished(StateError):
    """The run has no result yet."""

    def __init__(self, run_id: str, state: str) -> None:
        self.run_id = run_id
        self.state = state
        super().__init__(f"run {run_id} is {state} and has no result yet: wait for it first")


class NotInProcess(StateError):
    """An in-process stack (`trellis.workflows.testing`) cannot do it; `what` names it."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"not available in-process: {what}; test it with a Client on a real stack (`trellis up`)"
        )


class Stalled(StateError):
    """Nothing that an in-process stack could wait for would end the run; `waiting` maps open steps to their state."""

    def __init__(self, run_id: str, waiting: dict[str, str]) -> None:
        self.run_id = run_id
        self.waiting = waiting
        steps = ", ".join(f"{name!r} {state}" for name, state in waiting.items())
        super().__init__(f"run {run_id} does not end by itself: {steps or 'no step is open'}")


class WaitTimeout(StateError, TimeoutError):
    """The run did not end within the `seconds` given; it goes on all the same."""

    def __init__(self, run_id: str, state: str, seconds: float) -> None:
        self.run_id = run_id
        self.state = state
        self.seconds = seconds
        super().__init__(f"run {run_id} is still {state} after {seconds:g} s; it goes on")
