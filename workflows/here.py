"""Where a kind of step that the engine runs itself finds itself: its process and its run.

The law: such a step sees what a bundle sees and nothing more, so it can be run by any worker.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..tasks.settings import Settings
from .admission import Admission
from .dispatch import Dispatcher
from .journal import Journal
from .registry import Actions


@dataclass(frozen=True, slots=True)
class Here:
    """The process and the run around a step."""

    settings: Settings
    journal: Journal
    dispatcher: Dispatcher
    admission: Admission
    actions: Actions
    worker: str
    run: str
    workflow: str
    correlation_id: str
