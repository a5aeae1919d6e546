"""The verbs of control for asyncio: each is that of the client, awaited.

The law: thin, as the client for asyncio is: the sync verb, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import EllipsisType

from .bulk import Bulk
from .client import Client
from .records import DeadLetter, Json, Pause, Run
from .retention import Retention
from .search import Since
from .states import RunState


class AsyncVerbs:
    """The part of an `AsyncClient` that controls runs."""

    sync: Client

    async def retry(self, run: Run | str) -> bool:
        """See `Client.retry`."""
        return await asyncio.to_thread(self.sync.retry, run)

    async def dead_letters(
        self,
        workflow: str | None = None,
        *,
        since: Since | None = None,
        before: DeadLetter | None = None,
        limit: int = 50,
    ) -> Sequence[DeadLetter]:
        """See `Client.dead_letters`."""
        return await asyncio.to_thread(
            self.sync.dead_letters, workflow, since=since, before=before, limit=limit
        )

    async def dead_letters_of(self, run: Run | str) -> Sequence[DeadLetter]:
        """See `Client.dead_letters_of`."""
        return await asyncio.to_thread(self.sync.dead_letters_of, run)

    async def discard(self, run: Run | str, step: str | None = None) -> int:
        """See `Client.discard`."""
        return await asyncio.to_thread(self.sync.discard, run, step)

    async def rerun(
        self,
        run: Run | str,
        *,
        from_step: str | None = None,
        params: Mapping[str, Json] | None = None,
        inputs: Mapping[str, Mapping[str, Json]] | None = None,
    ) -> Run:
        """See `Client.rerun`."""
        return await asyncio.to_thread(
            self.sync.rerun, run, from_step=from_step, params=params, inputs=inputs
        )

    async def pause(
        self, run: Run | str | None = None, *, workflow: str | None = None, queue: str | None = None
    ) -> bool:
        """See `Client.pause`."""
        return await asyncio.to_thread(self.sync.pause, run, workflow=workflow, queue=queue)

    async def resume(
        self, run: Run | str | None = None, *, workflow: str | None = None, queue: str | None = None
    ) -> bool:
        """See `Client.resume`."""
        return await asyncio.to_thread(self.sync.resume, run, workflow=workflow, queue=queue)

    async def pauses(self) -> Sequence[Pause]:
        """See `Client.pauses`."""
        return await asyncio.to_thread(self.sync.pauses)

    async def bulk(
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
        """See `Client.bulk`."""
        return await asyncio.to_thread(
            self.sync.bulk, verb, workflow, state=state, status=status, tags=tags, since=since,
            from_step=from_step, params=params, inputs=inputs, dry_run=dry_run,
        )  # fmt: skip

    async def delete(self, run: Run | str) -> None:
        """See `Client.delete`."""
        await asyncio.to_thread(self.sync.delete, run)

    async def retain(
        self,
        workflow: str,
        keep: timedelta | EllipsisType | None = ...,
        *,
        events: timedelta | EllipsisType | None = ...,
        artifacts: timedelta | EllipsisType | None = ...,
    ) -> None:
        """See `Client.retain`."""
        await asyncio.to_thread(self.sync.retain, workflow, keep, events=events, artifacts=artifacts)

    async def retentions(self) -> Sequence[Retention]:
        """See `Client.retentions`."""
        return await asyncio.to_thread(self.sync.retentions)

    async def linked(self, run: Run | str, kind: str | None = None) -> Sequence[Run]:
        """See `Client.linked`."""
        return await asyncio.to_thread(self.sync.linked, run, kind)
