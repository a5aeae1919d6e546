"""What a client can do to runs that are there: retry, bury, pause, rerun, in bulk.

The law: as for the client; what is done is in Postgres when a verb returns, and the workers are told afterwards.
A verb that came too late says so and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from ..tasks.database import Database
from ..tasks.errors import NotFound
from ..tasks.settings import Settings
from .control import Control, Moved
from .dispatch import Dispatcher
from .durations import Durations
from .journal import Journal
from .queries import Queries, as_uuid
from .records import DeadLetter, Run
from .states import RunState

Since = datetime | timedelta  # a moment (with its time zone), or so long ago


class Verbs:
    """The part of a `Client` that controls runs."""

    settings: Settings
    database: Database
    _journal: Journal
    _durations: Durations
    _dispatcher: Dispatcher | None
    _queries: Queries

    @property
    def _control(self) -> Control:
        return Control(self.database)

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


def id_of(run: Run | str | UUID) -> str:
    """The id of a run. Raises NotFound for what cannot be one."""
    return run.id if isinstance(run, Run) else str(as_uuid(str(run)))
