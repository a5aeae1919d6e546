"""The client of an in-process stack, and the hands of a test: move the time, put in stand-ins, break things.

The law: whatever `Client` offers it offers, by the same code. Workers are there all the time and need none: when a
method returns, everything has happened that can happen at this moment.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Select, exists, select

from ...tasks.database import Database
from ...tasks.errors import ConfigurationError, NotInProcess, Stalled, WaitTimeout
from ...tasks.hints import did_you_mean
from ...tasks.settings import Settings, load
from ..client import Client
from ..dispatch import Dispatcher
from ..listener import Listener
from ..queries import Queries
from ..records import Run
from ..rollcall import Need
from ..search import Search, moment
from ..states import STEP_ENDS
from ..tables import RunRow, RunTagRow
from ..verbs import id_of
from .bodies import Moment, WorkerCrash
from .clock import START, Clock
from .outbox import Sent
from .stack import HandEngine

_PATIENCE = 10_000  # moments that `wait` looks at before it gives up


class HandListener(Listener):
    """Calls back when a run is announced as ended, in the thread of the test."""

    def __init__(self) -> None:
        super().__init__("in-process")

    @contextmanager
    def subscribed(self, run: str, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback` called each time `run` is announced."""
        self._waiting[run].append(callback)
        try:
            yield
        finally:
            self._waiting[run].remove(callback)

    def tell(self, run: str) -> None:
        """Call back whoever waits for this run."""
        self._tell(run)


class HandQueries(Queries):
    """Reads of the journal in memory. The ids of its runs do not tell its time, so that has to be looked at."""

    @staticmethod
    def _page(
        columns: Sequence[Any], wanted: Search, before: UUID | None, limit: int
    ) -> Select[*tuple[Any, ...]]:
        """A page of runs, the newest first: with no index to walk along, only the conditions are said."""
        statement = select(*columns).order_by(RunRow.id.desc()).limit(limit)
        if wanted.workflow is not None:
            statement = statement.where(RunRow.workflow == wanted.workflow)
        if wanted.state is not None:
            statement = statement.where(RunRow.state == wanted.state.value)
        for tag in wanted.tags:
            tagged = RunTagRow.__table__.alias()
            statement = statement.where(exists().where(tagged.c.run_id == RunRow.id, tagged.c.tag == tag))
        if wanted.since is not None:
            statement = statement.where(RunRow.created_at >= moment(wanted.since))
        return statement if before is None else statement.where(RunRow.id < before)


class Runner(Client):
    """A `Client` with a whole stack behind it, in this thread and without servers.

    now: what its clock shows at first (1 January 2026, 09:00 UTC without it); only `advance` and `wait` move it.
    options: settings by name, such as `max_crashes=0`; the environment is not read.
    Raises ConfigurationError for a setting that does not exist or does not fit.
    """

    def __init__(self, *, now: datetime = START, **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trellis-testing-")
        settings = in_process(Path(self._folder.name), options)
        self._engine = HandEngine(settings, Clock(now))
        self._working = True
        _log_through_the_standard_library()
        super().__init__(settings)
        self._durations = self._engine.durations
        self._hearing = self._listener = HandListener()
        self._queries = HandQueries(self.database)

    def _make_database(self) -> Database:
        return self._engine.database

    def _make_dispatcher(self) -> Dispatcher:
        return self._engine.dispatcher

    def _note_refused(self, *_: object) -> None:
        """An in-process stack keeps no audit log."""

    def close(self) -> None:
        """Forget everything, artifacts too."""
        super().close()
        self._folder.cleanup()

    # --- what a client does

    def wait(self, run: Run | str, timeout: float | None = None) -> Run:
        """Move the time on, from one moment at which something is due to the next, until the run is over.

        Raises WaitTimeout after `timeout` seconds of that time, Stalled where nothing will ever be due, NotFound.
        """
        begin = self.now
        deadline = None if timeout is None else begin + timedelta(seconds=timeout)
        for _ in range(_PATIENCE):
            self._settle()
            found = self.get(run)
            if found.finished:
                return found
            upcoming = self._engine.next_moment()
            if deadline is not None and (upcoming is None or upcoming > deadline):
                self._engine.clock.move(deadline)
                assert timeout is not None
                raise WaitTimeout(found.id, found.state, timeout)
            if upcoming is None:
                break
            self._engine.clock.move(upcoming)
        found = self.get(run)
        raise Stalled(found.id, {s.name: s.state for s in self.steps(found) if s.state not in STEP_ENDS})

    @contextmanager
    def ended(self, run: Run | str, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback()` called when the run is announced as ended: in this thread, before a method returns."""
        with self._listener.subscribed(id_of(run), callback):
            yield
            self._settle()

    # --- time

    @property
    def now(self) -> datetime:
        """What the clock of the stack shows."""
        return self._engine.clock.time

    def advance(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        """Let time pass: whatever is due on the way happens when it is due.

        Inside a body it says how long that takes; past its timeout StepTimeout is raised in it, as by a worker.
        """
        span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if span < timedelta():
            raise ValueError(f"advance({span}): time does not go back")
        if self._engine.bounds.busy:
            self._engine.bounds.spend(span)
            return
        until = self.now + span
        self._settle()
        while (upcoming := self._engine.next_moment(purging_too=True)) is not None and upcoming <= until:
            self._engine.clock.move(upcoming)
            self._settle()
        self._engine.clock.move(until)
        self._settle()

    # --- bodies

    def replace(self, action: Any, function: Callable[..., Any]) -> None:
        """Run `function` in the place of an action's body from now on; it takes all or some of the inputs by name.

        Inputs and result are still held to the action's contract. Raises DefinitionError for an action that this
        process does not know, or a function that asks for what is no input of it.
        """
        self._engine.bodies.replace(action, function)

    def replace_task(self, name: str, function: Callable[..., Any]) -> None:
        """Let `function` stand for a Celery task of another application.

        It is called with the task's arguments. For a step with `task=` what it returns or raises is what the step
        hears; in a chain that follows the end of a run (`on_success=`, `on_failure=`) what it returns goes on.
        """
        self._engine.messages.stand_ins[name] = function

    @property
    def sent(self) -> Sequence[Sent]:
        """The tasks that were sent because a run ended (`on_success=`, `on_failure=`), in order."""
        return list(self._engine.messages.outbox.outgoing)

    def fail(self, action: Any, error: BaseException | type[BaseException], *, times: int = 1) -> None:
        """Let the next `times` calls of an action's body raise `error` instead of running."""
        self._engine.bodies.disturb(
            action, lambda: error() if isinstance(error, type) else error, times, "before"
        )

    def crash(self, action: Any, *, times: int = 1, when: Moment = "before") -> None:
        """Let the worker vanish in the next `times` calls of an action's body, before or after what it does.

        As with a killed process, the step is taken up again after its lease has run out: `advance(minutes=1)`.
        """
        self._engine.bodies.disturb(action, WorkerCrash, times, when)

    def calls(self, action: Any) -> Sequence[Mapping[str, Any]]:
        """The inputs of every call of an action's body, in order, attempts that failed included."""
        return list(self._engine.bodies.calls[self._engine.bodies.named(action).name])

    # --- workers and messages

    @contextmanager
    def without_workers(self) -> Iterator[None]:
        """Nobody takes a message meanwhile, but for `work`; at the end all that waits is run."""
        before, self._working = self._working, False
        try:
            yield
        finally:
            self._working = before
        self._settle()

    def work(self, messages: int | None = None) -> int:
        """Run what waits, at most so many steps; answers with how many. For a look at a run half-way."""
        return 0 if self._engine.bounds.busy else self._engine.work(messages)

    def lose_messages(self) -> None:
        """Forget all messages, as a flushed Redis does. The tick finds what was lost: `advance(seconds=10)`."""
        self._engine.messages.lose()

    def _settle(self) -> None:
        if self._engine.bounds.busy:  # a body called: what it began goes on when it is over
            return
        self._engine.settle(working=self._working)
        while self._engine.store.ended:
            self._hearing.tell(self._engine.store.ended.pop(0))

    def _lacking(self, needs: Collection[Need]) -> Mapping[str, Collection[Need]]:
        return (
            {} if self._working else {"nobody takes messages: leave without_workers(), or call work()": needs}
        )

    def _unheard(self, queues: Collection[str]) -> Mapping[str, str]:
        return {}  # a stand-in answers at once, or there is none and the step fails


def _at_once(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The client's verb, and what follows from it."""

    @wraps(verb)
    def call(self: Runner, *arguments: Any, **options: Any) -> Any:
        if options.get("connection") is not None:
            raise NotInProcess("connection=, for there is no database whose transaction the run could join")
        if isinstance(options.get("since"), timedelta):
            options["since"] = self.now - options["since"]  # by the clock of the test
        try:
            answer = verb(self, *arguments, **options)
        except NotInProcess as error:
            raise NotInProcess(f"{verb.__name__}() ({error.what})") from error
        self._engine.hand.look()  # a body that does this to its own run hears of it at once
        self._settle()
        return answer

    return call


for _name, _verb in inspect.getmembers(Client, inspect.isfunction):
    if not _name.startswith("_") and _name not in vars(Runner):
        setattr(Runner, _name, _at_once(_verb))


def in_process(home: Path, options: Mapping[str, Any]) -> Settings:
    """The settings of an in-process stack: the defaults, and what the test gives."""
    known = Settings.model_fields
    for name in options:
        if name not in known:
            raise ConfigurationError(f"there is no setting {name!r}{did_you_mean(name, known)}")
    defaults = {name: field.default for name, field in known.items()}
    ours = {"database_url": "postgresql://in-process", "home": home, "bundle_ms": 0.0}
    return load(**{**defaults, **ours, **options})


def _log_through_the_standard_library() -> None:
    """So that pytest shows a failed test its log lines; without any configuration structlog prints them."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
