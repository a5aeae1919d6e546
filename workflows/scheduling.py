"""How schedules are declared in Python: the part of `Workflow` that says when runs start by themselves.

The law: a declaration is checked where it is written, and changes nothing: workers and `trellis schedules apply` make
of it what stands in the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from . import registry
from .declared import DAY, Declared, Startable


class Scheduling:
    """Schedules next to their workflow."""

    name: str

    def schedule(
        self,
        name: str | None = None,
        /,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str = "UTC",
        params: Mapping[str, Any] | None = None,
        jitter: float = 0.0,
        overlap: Literal["skip", "queue", "cancel", "allow"] = "skip",
        catch_up: float | timedelta = DAY,
        tick_param: str | None = None,
        anchor: datetime | None = None,
    ) -> None:
        """Declare a schedule of this workflow, after its last step: the name is the workflow's without one.

        Workers that import the module make it when they start, and so does `trellis schedules apply`; declared
        again with other arguments it is changed. The arguments are those of `client.schedules.create`.

        Raises DefinitionError, ParameterError.
        """
        declared = Declared(
            name or self.name, cast("Startable", self), cron, every, timezone, dict(params or {}), jitter, overlap,
            catch_up, tick_param, anchor,
        )  # fmt: skip
        declared.content(datetime.now(UTC))
        registry.schedules.add(declared)
