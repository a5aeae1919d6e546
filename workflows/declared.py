"""A schedule as it is written, next to its workflow or by a client.

The law: pure. What a declaration comes down to are the columns of one row, and everything that is wrong with it
is refused before that row is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from ..tasks.hints import choices
from . import timetable
from .records import Json
from .secret import refuse
from .spec import WorkflowSpec
from .timetable import wrong

DAY = 86_400.0
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


class Startable(Protocol):
    """What a schedule needs of a workflow."""

    @property
    def spec(self) -> WorkflowSpec:
        """Its definition. Raises DefinitionError."""

    def check_params(self, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The parameters of a run. Raises ParameterError."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A schedule as it was asked for; the fields are the arguments of `client.schedules.create`."""

    name: str
    workflow: Startable
    cron: str | None = None
    every: float | timedelta | None = None
    timezone: str = "UTC"
    params: Mapping[str, Json] | None = None
    jitter: float = 0.0
    overlap: str = "skip"
    catch_up: float | timedelta = DAY
    tick_param: str | None = None
    anchor: datetime | None = None

    def content(self, now: datetime) -> dict[str, Any]:
        """The columns that a declaration decides. Raises DefinitionError, ParameterError."""
        name, spec = self.name, self.workflow.spec
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise wrong(str(name), "a name has up to 200 letters, digits, `_`, `-` and `.`")
        timetable.check_overlap(name, self.overlap)
        if self.anchor is not None and (not isinstance(self.anchor, datetime) or self.anchor.tzinfo is None):
            raise wrong(name, f"anchor {self.anchor!r} is not a datetime with a time zone")
        anchor = self.anchor or now.replace(microsecond=0)
        table = timetable.timetable(name, self.cron, self.every, self.timezone, self.jitter, anchor)
        if self.tick_param is not None and self.tick_param not in spec.params:
            known = choices(str(self.tick_param), spec.params, "it has")
            raise wrong(
                name, f"tick_param: workflow {spec.name!r} has no parameter {self.tick_param!r}{known}"
            )
        given = dict(self.params or {})
        refuse(spec.params, "a schedule would keep it for its runs", spec.name)
        params_at(self.workflow, given, self.tick_param, table.timezone, anchor)
        return {
            "name": name,
            "workflow": spec.name,
            "definition": spec.digest(),
            "params": given,
            "cron": table.cron,
            "every": table.every,
            "timezone": table.timezone,
            "anchor": anchor,
            "jitter": table.jitter,
            "overlap": self.overlap,
            "catch_up": timetable.check_catch_up(name, self.catch_up),
            "tick_param": self.tick_param,
        }


def params_at(
    workflow: Startable, params: Mapping[str, Json], tick_param: str | None, zone: str, tick: datetime
) -> dict[str, Json]:
    """The parameters of the run of a tick. Raises ParameterError."""
    more = {} if tick_param is None else {tick_param: timetable.local(tick, zone).isoformat()}
    return workflow.check_params({**params, **more})
