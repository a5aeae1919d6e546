"""The verbs of control for asyncio: each is that of the client, awaited.

The law: thin, as the client for asyncio is: the sync verb, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .client import Client
from .records import DeadLetter, Run
from .verbs import Since


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

    async def linked(self, run: Run | str, kind: str | None = None) -> Sequence[Run]:
        """See `Client.linked`."""
        return await asyncio.to_thread(self.sync.linked, run, kind)
