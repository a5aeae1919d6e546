"""The client: start runs and watch them, from any Python application.

The law: what `start` has accepted is in Postgres; the message to the workers is only a hint, so a client
needs no broker to be safe. A client is thread-safe, holds one small pool, and opens it at first use.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import psycopg
from sqlalchemy.engine import Connection as AlchemyConnection
from sqlalchemy.orm import Session

from ..tasks.app import app, sender
from ..tasks.database import Connection, Database
from ..tasks.errors import ConfigurationError, NotFinished, RunCancelled, RunFailed, WaitTimeout
from ..tasks.settings import Settings, current
from . import ending, launch, signatures
from .admission import Admission
from .answers import Answers
from .beginnings import Debounce, Singleton, beginning, write
from .dispatch import Dispatcher
from .doubts import Doubts
from .durations import Durations
from .journal import Journal
from .launch import Startable
from .listener import Listener
from .queries import Queries
from .records import Event, Json, Progress, Run, Step
from .schedules import Schedules
from .search import Since, search
from .spec import WorkflowSpec
from .states import RunState, StepState
from .verbs import Verbs, id_of
from .why import Diagnosis

Joinable = psycopg.Connection[Any] | AlchemyConnection | Session

_AT_ONCE: dict[str, Any] = dict.fromkeys(("at", "delay", "debounce", "singleton"))
POLL = 1.0  # seconds between looks of somebody who waits and hears nothing


class Client(Verbs, Answers, Diagnosis, Doubts):
    """Starts runs and reads them back.

    Use it as a context manager, or call `close`. Settings come from the environment where none are given.
    Without the address of a broker runs are accepted all the same; the next tick announces them.
    Raises ConfigurationError where the address of Postgres is missing.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        database_url: str | None = None,
        broker_url: str | None = None,
    ) -> None:
        base = settings or current()
        given = {"database_url": database_url, "broker_url": broker_url}
        self.settings = base.model_copy(update={name: url for name, url in given.items() if url is not None})
        self.database = self._make_database()
        self._journal = Journal(self.database, self.settings)
        self._durations = Durations(self._journal)
        self._dispatcher = self._make_dispatcher()
        self._admission = Admission(self.database, self._dispatcher, self.settings)
        self._listener = Listener(self.database.url)
        self._queries = Queries(self.database)
        self.schedules = Schedules(self.database, self._journal, self.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._listener.close()
        self.database.close()

    def _make_database(self) -> Database:
        return Database(self.settings.need_database(), self.settings)

    def _make_dispatcher(self) -> Dispatcher | None:
        url = self.settings.broker_url
        if url is None:
            return None
        return Dispatcher(app if url == current().broker_url else sender(url), self.settings, self._durations)

    # --- start and stop

    def start(
        self,
        workflow: Startable,
        params: Mapping[str, Json] | None = None,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        tags: Sequence[str] = (),
        tenant: str | None = None,
        deadline: float | None = None,
        connection: Joinable | None = None,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        debounce: Debounce | None = None,
        singleton: Singleton | str | None = None,
        on_success: Any = (),
        on_failure: Any = (),
    ) -> Run:
        """Accept a run.

        workflow: a Workflow, a definition, or the name of one that this process or the journal knows.
        key: the same workflow and key give the same run back, whatever the parameters.
        correlation_id: an id of yours that every log line of the run carries; the run's id without it.
        tags: texts by which `list` finds it.
        tenant: whose run it is: tenants on a queue take turns. The workflow's `fair_key` says it without this.
        deadline: seconds from now at which the run fails with `DeadlineExceeded` if it is not over; the workflow's own
            without it. A child run has no more than what is left of its parent's.
        connection: a psycopg connection, SQLAlchemy connection or Session whose transaction the run joins: rolled
            back, it never was; committed, it starts with the next tick (within 2 s).
        at, delay: the moment (with its time zone), or the seconds from now, at which its first steps may begin.
        debounce: a later start with the same `Debounce` key replaces the parameters of the waiting run.
        singleton: a key (or `Singleton(key, window=…)`): while a run of the workflow that has it is open, it is
            given back, whatever the parameters.
        on_success, on_failure: Celery signatures (one or several) that are sent when the run has succeeded, or has
            failed or was cancelled: with its results, or what went wrong, as first argument unless immutable.

        Raises NotFound, DefinitionError, ParameterError, ValueTooLarge, CommunicationError; then nothing was written.
        """
        hooks = signatures.hooks(on_success, on_failure) or None
        given = {"tenant": tenant, "deadline": deadline, "hooks": hooks}
        columns = {name: value for name, value in given.items() if value is not None}
        when = {"at": at, "delay": delay, "debounce": debounce, "singleton": singleton}
        return self.begin(
            workflow,
            params,
            key=key,
            correlation_id=correlation_id,
            tags=tags,
            connection=connection,
            columns=columns,
            when=when,
        )

    def begin(
        self,
        workflow: Startable,
        params: Mapping[str, Json] | None = None,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        tags: Sequence[str] = (),
        connection: Joinable | None = None,
        columns: Mapping[str, Any] | None = None,
        when: Mapping[str, Any] | None = None,
    ) -> Run:
        """Accept a run, with columns of its row such as `hooks` (see following.py); the rest as in `start`."""
        found = launch.resolve(workflow, self._queries)
        begins = beginning(found.name, key=key, **(when or _AT_ONCE))
        prepared = launch.prepare(
            found,
            params,
            self.settings,
            key=key,
            correlation_id=correlation_id,
            tags=tags,
            columns=columns,
            means=self._durations.mean_ms if connection is not None else self._measured,
        )
        if connection is not None:
            own = _driver_connection(connection)
            with own.transaction():
                standing = write(self._journal, own, prepared, begins, sent=False)
                return self._journal.read(own, prepared.workflow, standing or prepared.run, key)
        dispatcher = self._dispatcher

        def accept() -> Run:
            with self.database.transaction() as own:
                sent = dispatcher is not None
                standing = write(self._journal, own, prepared, begins, sent=sent)
                return self._journal.read(own, prepared.workflow, standing or prepared.run, key)

        run = self.database.again(accept)
        deferred = begins is not None and begins.deferred
        if run.id == prepared.run and run.state is RunState.PAUSED:
            self._pauses.park(run.id)  # its workflow is paused
        elif run.id == prepared.run and dispatcher is not None and not deferred:
            dispatcher.publish(prepared.run, prepared.workflow, prepared.ready)
            self._admission.admit(prepared.lines)
        return run

    def _measured(self, action: str) -> float | None:
        if self._dispatcher is not None:
            self._durations.refresh()
        return self._durations.mean_ms(action)

    def submit(
        self,
        action: Any,
        inputs: Mapping[str, Json] | None = None,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        tags: Sequence[str] = (),
        tenant: str | None = None,
        deadline: float | None = None,
        connection: Joinable | None = None,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        debounce: Debounce | None = None,
        singleton: Singleton | str | None = None,
        on_success: Any = (),
        on_failure: Any = (),
    ) -> Run:
        """Accept a run of one action (or its name); its step has the last part of that name. The rest as in `start`."""
        workflow, params = launch.single(action, inputs or {})
        return self.start(
            workflow,
            params,
            key=key,
            correlation_id=correlation_id,
            tags=tags,
            tenant=tenant,
            deadline=deadline,
            connection=connection,
            at=at,
            delay=delay,
            debounce=debounce,
            singleton=singleton,
            on_success=on_success,
            on_failure=on_failure,
        )

    def cancel(self, run: Run | str) -> bool:
        """End a run now; False where it was over already.

        Waiting and ready steps never start. Running bodies see `ctx.cancelled` at their next heartbeat and are
        stopped after that; what they still report changes nothing. `on_cancel` steps begin when all of them have ended.
        """
        run_id = self.get(run).id
        ended = self._journal.end(run_id, RunState.CANCELLED)
        if ended:
            ending.announce(self._journal, self._dispatcher, run_id)
        return ended

    # --- watch

    def get(self, run: Run | str) -> Run:
        """The run as it is now. Raises NotFound."""
        return self._queries.run(id_of(run))

    def wait(self, run: Run | str, timeout: float | None = None) -> Run:
        """Block until the run is over, in whatever way; answers with it.

        Raises WaitTimeout after `timeout` seconds (the run goes on), NotFound.
        """
        run_id = id_of(run)
        heard = threading.Event()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._listener.subscribed(run_id, heard.set):
            while True:
                heard.clear()
                found = self._queries.run(run_id)
                if found.finished:
                    return found
                left = POLL if deadline is None else min(POLL, deadline - time.monotonic())
                if left <= 0:
                    assert timeout is not None
                    raise WaitTimeout(run_id, found.state, timeout)
                heard.wait(left)

    def result(self, run: Run | str, step: str | None = None) -> Json:
        """The result of one step, or without `step` a mapping of the last steps (those nothing depends on) to theirs.

        Raises RunFailed or RunCancelled where the run (or the step) has none, NotFinished where it has none yet.
        """
        found = self.get(run)
        if step is None:
            if found.state is RunState.FAILED:
                raise _failure(found)
            if found.state is RunState.CANCELLED:
                raise RunCancelled(found.id)
            if not found.finished:
                raise NotFinished(found.id, found.state)
            return self._queries.sinks(found.id)
        state, result, error = self._queries.result(found.id, step)
        if state is StepState.FAILED and error is not None:
            raise RunFailed(found.id, step, error)
        if state is StepState.CANCELLED:
            raise _failure(found) if found.state is RunState.FAILED else RunCancelled(found.id)
        if state not in (StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED):
            raise NotFinished(found.id, found.state)
        return result

    def list(
        self,
        workflow: str | None = None,
        *,
        state: RunState | str | None = None,
        status: RunState | str | None = None,
        tags: Sequence[str] = (),
        since: Since | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Sequence[Run]:
        """Runs, newest first.

        state, or status, which is the same: only runs that are in it. tags: only runs that have all of these. since:
            only those accepted after this moment, or younger than this.
        before: the id of the last run of the page before. Any of these, and any number of runs, are found by an index.
        """
        return self._queries.runs(search(workflow, state, tags, since, status), before, limit)

    def count(
        self,
        workflow: str | None = None,
        *,
        state: RunState | str | None = None,
        status: RunState | str | None = None,
        tags: Sequence[str] = (),
        since: Since | None = None,
        at_most: int = 1000,
    ) -> int:
        """How many runs there are, as for `list`; where there are more than `at_most`, that and one more."""
        return self._queries.count(search(workflow, state, tags, since, status), at_most + 1)

    def steps(self, run: Run | str) -> Sequence[Step]:
        """The steps of a run."""
        return self._queries.steps(self.get(run).id)

    def progress(self, run: Run | str) -> Progress:
        """How far a run is."""
        return self._queries.progress(id_of(run))

    def events(self, run: Run | str) -> Sequence[Event]:
        """What happened in a run, in order."""
        return self._queries.events(self.get(run))

    def definition(self, run: Run | str) -> WorkflowSpec:
        """The definition that a run started with, and keeps."""
        return WorkflowSpec.model_validate(self._queries.definition(self.get(run).definition))

    @contextmanager
    def ended(self, run: Run | str, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback()` called, from another thread, when the run is announced as ended."""
        with self._listener.subscribed(id_of(run), callback):
            yield


def _failure(run: Run) -> RunFailed:
    error = dict(run.error or {})
    step = error.get("step")
    return RunFailed(run.id, None if step is None else str(step), error)


def _driver_connection(joined: Joinable) -> Connection:
    """The psycopg connection behind what the caller passed. Raises ConfigurationError for anything else."""
    driver: Any = joined
    if isinstance(driver, Session):
        driver = driver.connection()
    if isinstance(driver, AlchemyConnection):
        if not driver.in_transaction():
            driver.begin()
        driver = driver.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise ConfigurationError(
            f"connection={type(joined).__name__}: pass a psycopg (version 3) connection, or a SQLAlchemy connection "
            "or Session on `postgresql+psycopg://…`"
        )
    if driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        if driver.autocommit:
            raise ConfigurationError(
                "connection= is in autocommit mode outside a transaction: open one with "
                "`with connection.transaction():`"
            )
        driver.execute(
            "SELECT 1"
        )  # begins the caller's transaction; else ours would be a whole one and commit
    return driver
