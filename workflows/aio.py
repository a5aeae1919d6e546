"""The client for asyncio: the same verbs, each awaited.

The law: thin. A call runs the sync client in a thread; only `wait` does not, since a thread for each waiting
coroutine would run out of threads: it is woken by the client's listener, and looks now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from ..tasks.errors import WaitTimeout
from ..tasks.settings import Settings
from .aio_doubts import AsyncDoubts
from .aio_schedules import AsyncSchedules
from .aio_verbs import AsyncVerbs
from .beginnings import Debounce, Singleton
from .client import POLL, Client
from .launch import Startable
from .records import Approval, Event, Json, Progress, Reason, Run, Step
from .search import Since
from .states import RunState


class AsyncClient(AsyncVerbs, AsyncDoubts):
    """Starts runs and reads them back, from coroutines. Use it with `async with`."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        database_url: str | None = None,
        broker_url: str | None = None,
    ) -> None:
        self.sync = Client(settings, database_url=database_url, broker_url=broker_url)
        self.schedules = AsyncSchedules(self.sync.schedules)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.sync.close)

    async def start(
        self,
        workflow: Startable,
        params: Mapping[str, Json] | None = None,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        tags: Sequence[str] = (),
        tenant: str | None = None,
        deadline: float | None = None,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        debounce: Debounce | None = None,
        singleton: Singleton | str | None = None,
        on_success: Any = (),
        on_failure: Any = (),
    ) -> Run:
        """See `Client.start`. A transaction of the caller's cannot be joined across threads."""
        return await asyncio.to_thread(
            self.sync.start, workflow, params, key=key, correlation_id=correlation_id, tags=tags, tenant=tenant,
            deadline=deadline, at=at, delay=delay, debounce=debounce, singleton=singleton,
            on_success=on_success, on_failure=on_failure,
        )  # fmt: skip

    async def cancel(self, run: Run | str) -> bool:
        """See `Client.cancel`."""
        return await asyncio.to_thread(self.sync.cancel, run)

    async def signal(self, run: Run | str, name: str, payload: Json = None, *, id: str | None = None) -> bool:  # noqa: A002
        """See `Client.signal`."""
        return await asyncio.to_thread(self.sync.signal, run, name, payload, id=id)

    async def approve(
        self, run: Run | str, step: str, by: str, comment: str = "", *, shown: str | None = None
    ) -> bool:
        """See `Client.approve`."""
        return await asyncio.to_thread(self.sync.approve, run, step, by, comment, shown=shown)

    async def reject(
        self, run: Run | str, step: str, by: str, comment: str = "", *, shown: str | None = None
    ) -> bool:
        """See `Client.reject`."""
        return await asyncio.to_thread(self.sync.reject, run, step, by, comment, shown=shown)

    async def approvals(self, run: Run | str | None = None, *, limit: int = 100) -> Sequence[Approval]:
        """See `Client.approvals`."""
        return await asyncio.to_thread(self.sync.approvals, run, limit=limit)

    async def why(self, run: Run | str) -> Sequence[Reason]:
        """See `Client.why`."""
        return await asyncio.to_thread(self.sync.why, run)

    async def get(self, run: Run | str) -> Run:
        """See `Client.get`."""
        return await asyncio.to_thread(self.sync.get, run)

    async def wait(self, run: Run | str, timeout: float | None = None) -> Run:
        """See `Client.wait`; holds no thread."""
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        found = await self.get(run)
        deadline = None if timeout is None else loop.time() + timeout

        def wake() -> None:
            loop.call_soon_threadsafe(heard.set)

        with self.sync.ended(found, wake):
            while True:
                heard.clear()
                found = await self.get(found)
                if found.finished:
                    return found
                left = POLL if deadline is None else min(POLL, deadline - loop.time())
                if left <= 0:
                    assert timeout is not None
                    raise WaitTimeout(found.id, found.state, timeout)
                try:
                    await asyncio.wait_for(heard.wait(), left)
                except TimeoutError:
                    continue

    async def result(self, run: Run | str, step: str | None = None) -> Json:
        """See `Client.result`."""
        return await asyncio.to_thread(self.sync.result, run, step)

    async def list(
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
        """See `Client.list`."""
        return await asyncio.to_thread(
            self.sync.list,
            workflow,
            state=state,
            status=status,
            tags=tags,
            since=since,
            before=before,
            limit=limit,
        )

    async def count(
        self,
        workflow: str | None = None,
        *,
        state: RunState | str | None = None,
        status: RunState | str | None = None,
        tags: Sequence[str] = (),
        since: Since | None = None,
        at_most: int = 1000,
    ) -> int:
        """See `Client.count`."""
        return await asyncio.to_thread(
            self.sync.count, workflow, state=state, status=status, tags=tags, since=since, at_most=at_most
        )

    async def steps(self, run: Run | str) -> Sequence[Step]:
        """See `Client.steps`."""
        return await asyncio.to_thread(self.sync.steps, run)

    async def progress(self, run: Run | str) -> Progress:
        """See `Client.progress`."""
        return await asyncio.to_thread(self.sync.progress, run)

    async def events(self, run: Run | str) -> Sequence[Event]:
        """See `Client.events`."""
        return await asyncio.to_thread(self.sync.events, run)
