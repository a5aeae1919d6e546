"""The actions of this process, and any other name as an action that takes and gives anything.

The law: for those who lay out, draw or repeat a workflow and do not run it. What this process knows is checked as
always; what it does not know is left to the workers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import registry
from .contract import Contract
from .registry import ActionInfo
from .secret import EVERY


class Lenient:
    """A catalogue that knows every action."""

    def get(self, name: str) -> ActionInfo | None:
        """The action."""
        return registry.actions.get(name) or ActionInfo(
            name, replace(Contract.of(_anything, name), secrets=EVERY)
        )

    def names(self) -> list[str]:
        """All names that are known here, sorted."""
        return registry.actions.names()


def _anything(**_: Any) -> Any:
    return None
