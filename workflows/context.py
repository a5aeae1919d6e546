"""What a body may know of the step that it is: handed to a parameter annotated `Context`.

The law: a context only tells and records. It has no way to change the run except through what its
methods say, and everything that it records goes through the step's lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import psycopg
import structlog
from pydantic_core import to_json

from ..tasks.errors import StateError, StepCancelled
from ..tasks.logs import get_logger
from .artifacts import Artifact, address
from .definition import Workflow
from .fragment import Fragment
from .joint import Joint
from .records import Json, StepResult
from .spec import WorkflowSpec

PROGRESS_MAX_BYTES = 16_384


class Door(Protocol):
    """A body's way to its own run."""

    def fragment(self) -> Fragment:
        """An empty fragment."""

    def append(self, steps: Workflow | WorkflowSpec | Mapping[str, Any]) -> tuple[str, ...]:
        """Keep a fragment for the completion."""

    def result(self, name: str) -> Json:
        """The result of a finished step."""

    def appended(self, name: str) -> dict[str, StepResult]:
        """What a step has appended."""


@dataclass(slots=True)
class Context:
    """The running step. Ask for it in a body's signature: `def fetch(url: str, ctx: Context)`."""

    __trellis_context__: ClassVar[bool] = True

    run_id: str
    workflow: str
    step: str
    attempt: int
    correlation_id: str
    artifacts_root: str
    door: Door | None = field(default=None, repr=False)
    _joint: Joint | None = field(default=None, repr=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    _progress: bytes | None = field(default=None, repr=False)
    _beaten: float = field(default_factory=time.monotonic, repr=False)

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this step, different for every other step: hand it to what you call."""
        return f"{self.run_id}/{self.step}"

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled or the step given to another worker. A long body looks now and then."""
        return self._cancelled.is_set()

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger whose lines carry run, step, attempt and correlation id."""
        return get_logger("trellis.step")

    def heartbeat(self, progress: Any = None) -> None:
        """Say that the body is alive and, if you like, how far (any JSON value, shown by `trellis show`).

        Raises ValueError for a progress that is too large, and StepCancelled where the step is no longer ours:
        let that pass, after tidying up.
        """
        self._beaten = time.monotonic()
        if self._cancelled.is_set():
            raise StepCancelled(f"step {self.step!r} was cancelled or given to another worker")
        if progress is not None:
            data = to_json(progress, inf_nan_mode="null")
            if len(data) > PROGRESS_MAX_BYTES or b"\\u0000" in data:
                raise ValueError(
                    f"progress is a short JSON value, at most {PROGRESS_MAX_BYTES:,} bytes and without NUL"
                )
            self._progress = data

    @property
    def beaten(self) -> float:
        """When the body last said that it is alive, as time.monotonic() (for the keeper)."""
        return self._beaten

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """A psycopg connection on our database, in a transaction that commits with the step's result or not at all.

        What the body writes there and the step's completion are one commit: where the body fails or is stopped, or the
        step is no longer its own, neither was. Each `with` block is a savepoint: an exception that leaves it takes back
        what the block did. Keep it short: its locks are held until the step is recorded.

        Raises StateError outside a durable run (`.delay()`, canvases), CommunicationError.
        """
        if self._joint is None:
            raise StateError("ctx.transaction() commits with a step's result: it works in durable runs only")
        with self._joint.part() as connection:
            yield connection

    def cancel(self) -> None:
        """Tell the body that its step is no longer its own (the keeper does)."""
        self._cancelled.set()

    def take_progress(self) -> str | None:
        """The progress that was not written yet, as JSON (for the keeper)."""
        progress, self._progress = self._progress, None
        return None if progress is None else progress.decode()

    def fragment(self) -> Fragment:
        """An empty fragment, to be filled like a workflow and given to `append`. Raises StateError outside a run."""
        return self._run().fragment()

    def append(self, steps: Workflow | WorkflowSpec | Mapping[str, Any]) -> tuple[str, ...]:
        """Add steps to the run, in the same transaction as this step's completion; answers with their whole names.

        steps: a fragment, a Workflow without parameters, or plain data as in a file: `{"steps": {…}}`. Step `search`
        that step `plan` appends is called `plan.search`. What stands behind this step waits for all of them.

        Checked now: raises DefinitionError for what is wrong, and nothing of it is kept. A body that fails, or is
        tried again, has appended nothing. Raises StateError outside a run.
        """
        return self._run().append(steps)

    def result(self, step: str) -> Json:
        """The result of a finished step of this run, by its whole name; null where it was skipped.

        Raises NotFound, NotFinished, RunFailed where the step failed, StateError outside a run.
        """
        return self._run().result(step)

    def appended(self, step: str) -> dict[str, StepResult]:
        """What a step has appended, by the names that it gave: each with `state`, `result` and `error`.

        Raises StateError outside a run.
        """
        return self._run().appended(step)

    def _run(self) -> Door:
        if self.door is None:
            raise StateError(
                f"{self.step!r} runs outside any run, so there is nothing to append to or to read: start it as a step"
            )
        return self.door

    def artifact(self, name: str) -> Artifact:
        """A place for data that are too large for the journal: write it, return it."""
        return Artifact(uri=address(self.artifacts_root, self.run_id, self.step, self.attempt, name))
