"""All statements that an in-process journal knows: importing this module is what fills the table."""

from __future__ import annotations

from . import (
    beginnings,
    control,
    effects,
    growth,
    limits,
    pauses,
    purging,
    reruns,
    rows,
    runs,
    schedules,
    standing,
    steps,
    upkeep,
    waiting,
)
from .counterparts import COPY, STATEMENTS

__all__ = [
    "COPY",
    "STATEMENTS",
    "beginnings",
    "control",
    "effects",
    "growth",
    "limits",
    "pauses",
    "purging",
    "reruns",
    "rows",
    "runs",
    "schedules",
    "standing",
    "steps",
    "upkeep",
    "waiting",
]
