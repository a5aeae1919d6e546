"""Schedules for asyncio: the verbs of `client.schedules`, each awaited.

The law: thin. A call runs the sync verb in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from .almanac import Schedule
from .declared import DAY
from .launch import Startable
from .records import Json, Run
from .schedules import Schedules


class AsyncSchedules:
    """The schedules of a database: `client.schedules` of an `AsyncClient`."""

    def __init__(self, sync: Schedules) -> None:
        self.sync = sync

    async def create(
        self,
        name: str,
        workflow: Startable,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str = "UTC",
        params: Mapping[str, Json] | None = None,
        jitter: float = 0.0,
        overlap: str = "skip",
        catch_up: float | timedelta = DAY,
        tick_param: str | None = None,
        anchor: datetime | None = None,
        paused: bool = False,
        replace: bool = False,
    ) -> Schedule:
        """See `Schedules.create`."""
        return await asyncio.to_thread(
            self.sync.create, name, workflow, cron=cron, every=every, timezone=timezone, params=params,
            jitter=jitter, overlap=overlap, catch_up=catch_up, tick_param=tick_param, anchor=anchor, paused=paused,
            replace=replace,
        )  # fmt: skip

    async def list(self, workflow: str | None = None) -> Sequence[Schedule]:
        """See `Schedules.list`."""
        return await asyncio.to_thread(self.sync.list, workflow)

    async def get(self, name: str) -> Schedule:
        """See `Schedules.get`."""
        return await asyncio.to_thread(self.sync.get, name)

    async def pause(self, name: str) -> Schedule:
        """See `Schedules.pause`."""
        return await asyncio.to_thread(self.sync.pause, name)

    async def resume(self, name: str) -> Schedule:
        """See `Schedules.resume`."""
        return await asyncio.to_thread(self.sync.resume, name)

    async def delete(self, name: str) -> None:
        """See `Schedules.delete`."""
        await asyncio.to_thread(self.sync.delete, name)

    async def trigger(self, name: str) -> Run:
        """See `Schedules.trigger`."""
        return await asyncio.to_thread(self.sync.trigger, name)

    async def backfill(self, name: str, begin: datetime, end: datetime) -> int:
        """See `Schedules.backfill`."""
        return await asyncio.to_thread(self.sync.backfill, name, begin, end)
