"""What a client can do to runs that are there: retry, bury, pause, rerun, in bulk.

The law: as for the client; what is done is in Postgres when a verb returns, and the workers are told afterwards.
A verb that came too late says so and changes nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from types import EllipsisType
from uuid import UUID

from ..tasks.database import Database
from ..tasks.errors import DefinitionError, NotFound
from ..tasks.settings import Settings
from . import rerun
from .admission import Admission
from .bulk import Bulk, apply
from .control import Control, Moved
from .dispatch import Dispatcher
from .durations import Durations
from .journal import Journal
from .pauses import Pauses
from .queries import Queries, as_uuid
from .records import DeadLetter, Json, Pause, Run
from .retention import Purge, Retention
from .search import Since, search
from .states import RunState


class Verbs:
    """The part of a `Client` that controls runs."""

    settings: Settings
    database: Database
    _journal: Journal
    _durations: Durations
    _dispatcher: Dispatcher | None
    _queries: Queries
    _admission: Admission

    @property
    def _control(self) -> Control:
        return Control(self.database)

    @property
    def _pauses(self) -> Pauses:
        return Pauses(self.database)

    # --- failed runs

    def retry(self, run: Run | str) -> bool:
        """Go on with a failed or cancelled run, in place; False where it is open already.

        Its failed steps (those that the run did not survive) and its cancelled ones are open again, with all their
        attempts; what succeeded, was skipped, or failed under a policy stays as it is. Its dead letters are gone.

        Raises NotFound; StateError for a run that succeeded, or whose compensation has begun.
        """
        run_id = id_of(run)
        moved = self._control.retry(run_id, sent=self._dispatcher is not None)
        if moved is None:
            return False
        self._published(run_id, moved)
        return True

    def dead_letters(
        self,
        workflow: str | None = None,
        *,
        since: Since | None = None,
        before: DeadLetter | None = None,
        limit: int = 50,
    ) -> Sequence[DeadLetter]:
        """Steps that failed for good and took their run with them, the latest first.

        since: only those after this moment, or younger than this. before: the last one of the page before.
        A retry of the run takes its dead letters away.
        """
        return self._queries.dead_letters(workflow, since, before, limit)

    def dead_letters_of(self, run: Run | str) -> Sequence[DeadLetter]:
        """The dead letters of a run. Raises NotFound."""
        return self._queries.dead_letters_of(self._queries.run(id_of(run)).id)

    def discard(self, run: Run | str, step: str | None = None) -> int:
        """Remove the dead letters of a run, or that of one step; answers with how many there were.

        The run stays as it is, and may still be retried. Raises NotFound.
        """
        run_id = self._queries.run(id_of(run)).id
        idx = None
        if step is not None:
            letter = next((each for each in self._queries.dead_letters_of(run_id) if each.step == step), None)
            if letter is None:
                raise NotFound("dead letter", step, f"run {run_id} has none of this step")
            idx = letter.idx
        return self._control.discard(run_id, idx)

    def rerun(
        self,
        run: Run | str,
        *,
        from_step: str | None = None,
        params: Mapping[str, Json] | None = None,
        inputs: Mapping[str, Mapping[str, Json]] | None = None,
    ) -> Run:
        """Start a new run that repeats an old one, with the finished results of that one where they still hold.

        from_step: this step and all behind it are computed again. Without it: what did not succeed.
        params: parameters to change. inputs: inputs of steps to change, as plain values: {step: {input: value}}.

        Computed again as well: every step whose inputs, options or condition a change reaches, and all behind it. A
        map is reused or computed as a whole. The new run has the definition of the old one, which is its `origin`.

        Raises NotFound for an unknown run or step, ParameterError, DefinitionError for inputs that do not fit,
        StateError where the old run is open or nothing of it would be computed again; then nothing was written.
        """
        old = self._queries.run(id_of(run))
        wanted = rerun.Wanted(from_step, params, inputs)
        prepared = rerun.prepare(self._queries, self.database, self.settings, old, wanted)

        def once() -> Moved:
            with self.database.transaction() as connection:
                return rerun.write(connection, prepared, sent=self._dispatcher is not None)

        self._published(prepared.run, self.database.again(once))
        return self._queries.run(prepared.run)

    # --- pauses

    def pause(
        self, run: Run | str | None = None, *, workflow: str | None = None, queue: str | None = None
    ) -> bool:
        """Let nothing begin any more of a run, of all runs of a workflow, or on a queue; False where it is paused.

        With a run its child runs are paused, and theirs. Bodies that run go on, and their results count. The other
        steps of a paused run hold no worker, no places in limits, and cost no tick anything. Runs of a paused workflow
        that are started meanwhile are paused from the beginning.

        Raises NotFound, StateError for a run that is over, DefinitionError unless one of the three is given.
        """
        _one(run, workflow, queue)
        if queue is not None:
            return self._pauses.begin("queue", queue)
        if run is not None:
            new, held = False, self._pauses.pause(id_of(run))
        else:
            assert workflow is not None
            new, held = self._pauses.begin("workflow", workflow), self._pauses.hold_workflow(workflow)
        self._admit(held.lines)
        return new or held.changed

    def resume(
        self, run: Run | str | None = None, *, workflow: str | None = None, queue: str | None = None
    ) -> bool:
        """Let a run, the runs of a workflow, or a queue go on; False where nothing was paused.

        Each step goes on where it stood: with what it waits for, what it has noted, and the time at which it is due;
        one with a limit stands in line again. A run that is paused for more than one reason (somebody paused that
        very run, its workflow, or the run that it is a step of) stays until none of them is left.

        Raises NotFound, StateError for a run that is over, or whose workflow, or the run that it is a step of, is
        paused; DefinitionError unless one of the three is given.
        """
        _one(run, workflow, queue)
        sent = self._dispatcher is not None
        if run is not None:
            moved = self._pauses.resume(id_of(run), sent=sent)
            for each, its in moved:
                self._published(each, its)
            return bool(moved)
        if queue is not None:
            return self._pauses.end("queue", queue)  # the next tick announces what is ready there
        assert workflow is not None
        changed = self._pauses.end("workflow", workflow)
        for each, its in self._pauses.free_workflow(workflow, sent=sent):
            self._published(each, its)
            changed = True
        return changed

    def pauses(self) -> Sequence[Pause]:
        """The workflows and queues that are paused."""
        return self._pauses.every()

    # --- many runs, old runs

    def bulk(
        self,
        verb: str,
        workflow: str | None = None,
        *,
        state: RunState | str | None = None,
        status: RunState | str | None = None,
        tags: Sequence[str] = (),
        since: Since | None = None,
        from_step: str | None = None,
        params: Mapping[str, Json] | None = None,
        inputs: Mapping[str, Mapping[str, Json]] | None = None,
        dry_run: bool = False,
    ) -> Bulk:
        """Do something to every run that `list` would find, one after the other, the newest first.

        verb: retry, rerun, cancel, pause, resume or delete. Without `state` it means the runs that it can be done to.
        from_step, params, inputs: for reruns, as in `rerun`; with one of them those that succeeded are meant as well.
        dry_run: only count them. Runs that are accepted meanwhile are not meant; one that refuses is named in the
        answer, and the others are done.

        Raises DefinitionError for an unknown verb, changes or a state that do not fit it, or no condition at all.
        """
        wanted = search(workflow, state, tags, since, status)
        asked = {"from_step": from_step, "params": params, "inputs": inputs}
        changes = {name: value for name, value in asked.items() if value is not None}
        return apply(self._deeds, self._queries, verb, wanted, changes, dry_run=dry_run)

    @property
    def _deeds(self) -> dict[str, Callable[..., object]]:
        return {
            "retry": self.retry,
            "rerun": self.rerun,
            "cancel": self.cancel,
            "pause": self.pause,
            "resume": self.resume,
            "delete": self.delete,
        }

    @abstractmethod
    def cancel(self, run: Run | str) -> bool:
        """End a run now."""

    def delete(self, run: Run | str) -> None:
        """Delete a run that is over: its steps, results, events, signals, tags, dead letters and artifacts.

        Raises NotFound, StateError where it is open, is still to be compensated, or another run needs it (a rerun of
        it, the run it is a child of).
        """
        self._purge.one(id_of(run))

    def retain(
        self,
        workflow: str,
        keep: timedelta | EllipsisType | None = ...,
        *,
        events: timedelta | EllipsisType | None = ...,
        artifacts: timedelta | EllipsisType | None = ...,
    ) -> None:
        """Keep the runs of a workflow for so long after their end; then the tick deletes them, artifacts and all.

        keep: None: as TRELLIS_RETENTION_DAYS says. `timedelta.max`: for ever.
        events, artifacts: keep those of its runs for a shorter time than the runs; None: as long as the run. Who opens
            an artifact that is gone gets `ArtifactPurged`, in a rerun that names it as well.

        What is not given stays as it is. Raises DefinitionError for no time or less, or where nothing is given.
        """
        asked = {"keep": keep, "events": events, "artifacts": artifacts}
        spans = {name: span for name, span in asked.items() if not isinstance(span, EllipsisType)}
        if not spans:
            raise DefinitionError("say how long, and what: keep=, events= or artifacts=", workflow=workflow)
        for name, span in spans.items():
            if span is not None and span <= timedelta(0):
                raise DefinitionError(f"{name}={span}: give a span of time above 0", workflow=workflow)
        self._purge.keep(workflow, spans)

    def retentions(self) -> Sequence[Retention]:
        """The workflows for which something else is said than TRELLIS_RETENTION_DAYS."""
        return self._purge.every()

    @property
    def _purge(self) -> Purge:
        return Purge(self.database, self.settings)

    def linked(self, run: Run | str, kind: str | None = None) -> Sequence[Run]:
        """The runs that began because of this one, the oldest first: its `origin` is theirs.

        kind: only those that undo it ("compensation") or repeat it ("rerun"). Raises NotFound.
        """
        return self._queries.linked(self._queries.run(id_of(run)).id, kind)

    # --- what they have in common

    def _published(self, run: str, moved: Moved) -> None:
        if self._dispatcher is not None and moved.ready and moved.state is not RunState.PAUSED:
            self._durations.refresh()
            self._dispatcher.publish(run, moved.workflow, moved.ready)
        self._admit(moved.lines)

    def _admit(self, lines: Collection[str]) -> None:
        """Let in who may pass these limits now; without a broker the next tick does."""
        if self._dispatcher is not None and lines:
            self._admission.admit(lines)


def id_of(run: Run | str | UUID) -> str:
    """The id of a run. Raises NotFound for what cannot be one."""
    return run.id if isinstance(run, Run) else str(as_uuid(str(run)))


def _one(*given: object) -> None:
    if sum(each is not None for each in given) != 1:
        raise DefinitionError("say one of the three: a run, workflow=, or queue=")
