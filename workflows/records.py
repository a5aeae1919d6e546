"""What the journal answers with: frozen records, one a row.

The law: a record is a value. It never reads the database again; ask the client for a newer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from ..tasks.vault import hidden
from .states import RUN_ENDS, RunState, StepState

Json = Any  # what JSON can hold: None, bool, int, float, str, list, dict


class Ready(NamedTuple):
    """A ready step that a message should announce."""

    idx: int
    name: str
    action: str
    queue: str
    priority: int
    rank: float | None  # seconds of the longest path that begins with it, where that decides its turn
    expect: float | None  # seconds that it is expected to take, where it has a rank
    alone: bool  # an earlier attempt took its worker down: it may not take neighbours with it
    delay: float = 0.0  # seconds until it may begin: a second or two at most, longer waits are the journal's


class Span(NamedTuple):
    """Ready steps with neighbouring ids: the items of a map."""

    first: int
    many: int
    name: str  # of the map
    action: str
    queue: str
    priority: int
    ranked: bool  # longest path first
    expect: float | None  # seconds that each is expected to take, where they are ranked


class Claimed(NamedTuple):
    """A step that this process holds the lease of."""

    idx: int
    name: str
    action: str
    queue: str
    priority: int
    attempt: int
    failures: int
    blocked: int
    inputs: dict[str, Json] | None
    bindings: list[Json] | None
    refs: list[int] | None
    options: dict[str, Json] | None
    lease: str
    wait: dict[str, Json] | None = None  # what it noted when it was parked, and what woke it
    rank: float | None = None
    expect: float | None = None


class Parked(NamedTuple):
    """A step that is put aside until something wakes it, or its time is up."""

    idx: int
    lease: str
    waits_for: str  # "signal:NAME", "run:ID", "time", … (see docs/explain/architecture.md)
    wait: dict[str, Json]  # handed back with the next claim, with `woken`: by what
    delay: float | None = None  # seconds until it is woken anyway; neither: never
    until: str | None = None  # or a moment, as ISO 8601 with its offset


class Expired(NamedTuple):
    """A step whose lease has run out, now under a lease of the tick."""

    run: str
    workflow: str
    idx: int
    name: str
    attempt: int
    failures: int
    options: dict[str, Json] | None
    worker: str
    ran: float  # seconds since the claim
    lease: str
    intent: int | None = None  # the attempt that announced an effect
    wait: dict[str, Json] | None = None


class Outcome(NamedTuple):
    """What became of a claimed step. `ended` is a reading of time.monotonic()."""

    idx: int
    lease: str
    state: StepState
    result: bytes | None = None
    error: dict[str, Json] | None = None
    fault: int = 0  # 1: the attempt counts against the step's retry policy
    blocks: bool = False  # what depends on the step is skipped
    delay: float = 0.0  # seconds until the next attempt
    fatal: bool = False  # the run fails with it
    ran: float = 0.0  # seconds in the body
    ended: float = 0.0


class Completed(NamedTuple):
    """What a completion changed."""

    won: frozenset[int]  # outcomes that were recorded; the rest came too late
    mine: list[Claimed]  # freed steps that this process goes on with
    free: list[Ready]  # freed steps to publish
    closed: bool  # the run is over
    gates: tuple[str, ...] = ()  # limits to be asked: freed steps wait for them, or the run has left them


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step with its result, as another step of its run finds it."""

    idx: int
    name: str  # the whole one
    state: StepState
    result: Json
    error: dict[str, Json] | None  # type and message, where it failed
    defaulted: bool  # its failure was answered by a default, which is its result

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> StepResult:
        """From the columns in the order of the fields."""
        idx, name, state, *rest = row
        return cls(idx, name, StepState(state), *rest)


class Signal(NamedTuple):
    """Something that the outside world told a run."""

    id: int
    key: str
    payload: Json
    at: datetime


class Told(NamedTuple):
    """What became of a signal."""

    state: RunState | None  # of the run; None: there is no such run
    workflow: str
    new: bool  # False: the same key was told before, or the run is over
    woken: list[Ready]  # the steps that it woke, to be published

    @property
    def open(self) -> bool:
        """Whether the run is not over."""
        return self.state is not None and self.state not in RUN_ENDS


class Ending(NamedTuple):
    """How a run ended."""

    state: RunState
    error: dict[str, Json] | None
    size: int  # bytes of the results
    results: bytes | None  # a JSON object; None where it has none, or they are too large


class Ended(NamedTuple):
    """A run that is over, for those who act on its end."""

    run: str
    workflow: str
    state: RunState
    params: dict[str, Json]
    error: dict[str, Json] | None
    hooks: dict[str, Json]  # what is to follow its end (following.py)
    correlation_id: str


class Pause(NamedTuple):
    """A workflow or a queue that is paused."""

    kind: str  # "workflow" or "queue"
    name: str
    at: datetime


class Recorded(NamedTuple):
    """A step that was completed together with what it wrote."""

    completed: Completed
    ready: list[Ready]  # new steps that may run at once
    spans: Sequence[Span] = ()  # and ranges of them


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a workflow."""

    id: str
    workflow: str
    state: RunState
    key: str | None
    params: dict[str, Json]  # secret ones as asterisks
    correlation_id: str
    definition: str  # digest of the definition that it runs
    steps: int  # how many steps it has so far
    error: dict[str, Json] | None  # type, message, traceback and step, where it failed
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    tags: tuple[str, ...] = ()
    origin: str | None = None  # the run that this one repeats or undoes
    origin_kind: str | None = None  # "rerun" or "compensation"

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Run:
        """From the columns in the order of the fields."""
        run_id, workflow, state, key, params, *rest, tags, origin, kind = row
        linked = [tuple(tags), None if origin is None else str(origin), kind]
        return cls(*[str(run_id), workflow, RunState(state), key, hidden(params), *rest, *linked])

    @property
    def finished(self) -> bool:
        """Whether it is over, in whatever way."""
        return self.state in RUN_ENDS


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a run."""

    idx: int
    name: str
    action: str
    queue: str
    priority: int
    state: StepState
    attempt: int
    failures: int
    started_at: datetime | None
    finished_at: datetime | None
    worker: str | None
    progress: Json
    error: dict[str, Json] | None

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Step:
        """From the columns in the order of the fields."""
        idx, name, action, queue, priority, state, *rest = row
        return cls(idx, name, action, queue, priority, StepState(state), *rest)

    @property
    def seconds(self) -> float | None:
        """How long its last attempt ran; None where there was none or it still runs."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(0.0, (self.finished_at - self.started_at).total_seconds())


@dataclass(frozen=True, slots=True)
class Approval:
    """A step that waits for people to approve."""

    run: str
    workflow: str
    step: str
    message: str
    show: dict[str, Json]  # what they are to look at
    digest: str  # and its identity, to which a vote is bound
    who: tuple[str, ...]  # who may; empty: anybody
    needed: int
    yes: tuple[str, ...]  # who approved so far
    until: datetime | None  # when others are asked, or it expires

    @classmethod
    def from_row(cls, run: Any, workflow: str, step: str, wait: dict[str, Json]) -> Approval:
        """From what the step noted when it was parked."""
        until = wait.get("until")
        return cls(
            str(run),
            workflow,
            step,
            wait["message"],
            wait["show"],
            wait["digest"],
            tuple(wait["who"]),
            wait["needed"],
            tuple(wait["yes"]),
            None if until is None else datetime.fromisoformat(until),
        )


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a run does not move."""

    text: str
    advice: str = ""  # a command that would end it, where there is one


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run."""

    at: datetime
    kind: str  # run.created, run.started, step.started, step.succeeded, step.retry, …
    step: str | None
    attempt: int | None
    detail: dict[str, Json] | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    total: int
    done: int
    by_state: dict[StepState, int]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A step that failed for good and took its run with it, until somebody replays or discards it."""

    at: datetime
    run: str
    workflow: str
    idx: int
    step: str
    action: str
    error: dict[str, Json] | None  # type, message, traceback

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> DeadLetter:
        """From the columns in the order of the fields."""
        at, run, *rest = row
        return cls(at, str(run), *rest)
