"""What a bundle needs of its process.

The law: an interface and nothing else, so that the in-process runner can stand in for a worker.
"""

from __future__ import annotations

from typing import Protocol

from ..tasks.settings import Settings
from .admission import Admission
from .dispatch import Dispatcher
from .durations import Durations
from .journal import Journal
from .keeper import Keeper
from .limits import Guard
from .registry import Actions


class Parts(Protocol):
    """What a bundle needs of its process."""

    settings: Settings
    journal: Journal
    durations: Durations
    dispatcher: Dispatcher
    admission: Admission
    keeper: Keeper
    actions: Actions

    @property
    def worker(self) -> str:
        """This process, as the journal names it."""

    def guard(self) -> Guard:
        """What holds the bodies of the calling thread to their limits."""
