"""What the outside world tells a run: signals and votes. The part of `Client` that answers waiting steps.

The law: what is told is in Postgres before the call returns, and counts once under its id. Whoever it wakes is
announced at once where there is a broker, else by the next tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn
from uuid import uuid4

from ..tasks.database import Database
from ..tasks.errors import ApprovalStale, DefinitionError, NotFound, NotPermitted, StateError, ValueTooLarge
from ..tasks.settings import Settings
from . import auditing, votes, wire
from .contract import unkeepable
from .dispatch import Dispatcher
from .journal import Journal
from .queries import Queries, as_uuid
from .records import Approval, Json, Run, Told


class Answers:
    """Signals and votes."""

    settings: Settings
    database: Database
    _journal: Journal
    _dispatcher: Dispatcher | None
    _queries: Queries

    def signal(self, run: Run | str, name: str, payload: Json = None, *, id: str | None = None) -> bool:  # noqa: A002
        """Send a signal to a run; it is kept until a step waits for it. False where this id was told before.

        payload: any JSON value. id: an id of yours; a signal that is sent again under it counts once.
        Raises NotFound, StateError where the run is over, DefinitionError or ValueTooLarge for what cannot be kept.
        """
        key = uuid4().hex if id is None else id
        _check("name", name)
        _check("id", key)
        return self._tell(_id(run), name, key, payload, f"signal:{name}").new

    def approve(
        self, run: Run | str, step: str, by: str, comment: str = "", *, shown: str | None = None
    ) -> bool:
        """Approve what a waiting step shows. False where this person said so before.

        shown: the digest of what was looked at (see `approvals`); refused where it shows something else by now.
        Raises NotFound, StateError where the step does not wait for it, NotPermitted, ApprovalStale.
        """
        return self._vote(run, step, by, comment, votes.YES, shown)

    def reject(
        self, run: Run | str, step: str, by: str, comment: str = "", *, shown: str | None = None
    ) -> bool:
        """Reject what a waiting step shows: it fails with ApprovalRejected. The rest as in `approve`."""
        return self._vote(run, step, by, comment, votes.NO, shown)

    def approvals(self, run: Run | str | None = None, *, limit: int = 100) -> Sequence[Approval]:
        """The steps that wait for approval, of one run or of all, with what they show."""
        return self._queries.approvals(None if run is None else _id(run), limit)

    def _vote(self, run: Run | str, step: str, by: str, comment: str, vote: str, shown: str | None) -> bool:
        run_id = _id(run)
        _check("by", by)
        asked = self._queries.approval(run_id, step)
        if asked is None:
            self._refuse(run_id, step)
        if asked.who and by not in asked.who:
            self._note_refused(run_id, step, by, vote, asked.who)
            raise NotPermitted(f"decide on step {step!r}", by, asked.who)
        if shown is not None and shown != asked.digest:
            raise ApprovalStale(step, shown, asked.digest)
        payload = {"by": by, "comment": comment, "vote": vote, "shown": asked.digest}
        channel = votes.channel(step)
        return self._tell(run_id, channel, f"{by}/{vote}/{asked.digest}", payload, channel).new

    def _note_refused(self, run_id: str, step: str, by: str, vote: str, who: Sequence[str]) -> None:
        auditing.refused(self.database, run_id, step, by, vote, who)

    def _refuse(self, run_id: str, step: str) -> NoReturn:
        state, _, _ = self._queries.result(run_id, step)
        raise StateError(f"step {step!r} of run {run_id} does not wait for an approval: it is {state}")

    def _tell(self, run_id: str, name: str, key: str, payload: Json, waits_for: str) -> Told:
        try:
            size = len(wire.dumps(payload).encode())
        except (TypeError, ValueError) as error:
            raise DefinitionError(f"the payload of signal {name!r} is not JSON: {error}") from None
        problem = unkeepable(payload)
        if problem is not None:
            raise DefinitionError(f"the payload of signal {name!r}: {problem}")
        if size > self.settings.value_max_bytes:
            raise ValueTooLarge(f"the payload of signal {name!r}", size, self.settings.value_max_bytes)
        publish = self._dispatcher is not None
        told = self._journal.signal(run_id, name, key, payload, waits_for, sent=publish)
        if told.state is None:
            raise NotFound("run", run_id, "`trellis runs` lists them")
        if not told.open:
            raise StateError(f"run {run_id} is {told.state} and takes no more signals")
        if self._dispatcher is not None:
            self._dispatcher.publish(run_id, told.workflow, told.woken)
        return told


def _id(run: Run | str) -> str:
    return run.id if isinstance(run, Run) else str(as_uuid(run))


def _check(what: str, value: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 500 or "\x00" in value:
        raise DefinitionError(f"{what}={value!r}: a text of 1 to 500 characters without NUL")
