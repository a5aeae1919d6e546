"""Steps in doubt for asyncio: the verbs of the client, each awaited.

The law: thin, as the client for asyncio is: the sync verb, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .client import Client
from .doubts import UNSAID, Doubt
from .records import Json, Run


class AsyncDoubts:
    """The part of an `AsyncClient` that resolves steps in doubt."""

    sync: Client

    async def doubts(self, run: Run | str | None = None, *, limit: int = 100) -> Sequence[Doubt]:
        """See `Client.doubts`."""
        return await asyncio.to_thread(self.sync.doubts, run, limit=limit)

    async def resolve(
        self,
        run: Run | str,
        step: str,
        *,
        done: Json = UNSAID,
        retry: bool = False,
        fail: str | None = None,
        by: str = "",
    ) -> None:
        """See `Client.resolve`."""
        await asyncio.to_thread(self.sync.resolve, run, step, done=done, retry=retry, fail=fail, by=by)
