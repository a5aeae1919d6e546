"""rule-engine, imported when somebody first asks this module for something of it.

The law: a process that reads no condition does not pay for their parser, whose tables are built on import: measured,
0.4 s of processor, a fifth of what `trellis --version` took. `rules.X` is `rule_engine.X`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    found = globals()[name] = getattr(import_module("rule_engine"), name)
    return found
