"""All statements that an in-process journal knows: importing this module is what fills the table."""

from __future__ import annotations

from . import control, effects, growth, limits, rows, runs, steps, upkeep, waiting
from .counterparts import COPY, STATEMENTS

__all__ = [
    "COPY",
    "STATEMENTS",
    "control",
    "effects",
    "growth",
    "limits",
    "rows",
    "runs",
    "steps",
    "upkeep",
    "waiting",
]
