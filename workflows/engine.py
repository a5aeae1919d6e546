"""The engine of a process: its settings, journal, dispatcher and keeper, wired once.

The law: building an engine opens nothing. Connections and the keeper's thread come with the first use, in
the process that uses them, so an engine made before a fork is as good as one made after it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import lru_cache

from celery import Celery

from ..tasks.app import app
from ..tasks.database import Database
from ..tasks.settings import Settings, current
from . import limits, registry
from .admission import Admission
from .auditing import Sealing
from .bundle import Bundle
from .dispatch import Dispatcher
from .durations import Durations
from .journal import Journal
from .keeper import Keeper
from .sweeping import Sweeping


class Engine:
    """Everything that running steps takes."""

    def __init__(self, settings: Settings, celery: Celery = app, database: Database | None = None) -> None:
        self.settings = settings
        self.database = database or Database(settings.need_database(), settings)
        self.journal = Journal(self.database, settings)
        self.durations = Durations(self.journal)
        self.dispatcher = Dispatcher(celery, settings, self.durations)
        self.admission = Admission(self.database, self.dispatcher, settings)
        self.sealing = Sealing(self.database, settings)
        self.sweeping = Sweeping(self.database, settings)
        self.keeper = Keeper(self.journal, settings)
        self.actions = registry.actions

    @property
    def worker(self) -> str:
        """This process, as the journal names it."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def guard(self) -> limits.Guard:
        """What holds the bodies of the calling thread to their limits."""
        return limits.guard()

    def run_bundle(self, action: str, run: str, idx: Sequence[int], ranked: str | None = None) -> None:
        """Run these steps of a run, all of one action, as far as they are ready.

        With `ranked`, a queue: as many of the most urgent steps that the run has in it.
        """
        self.durations.refresh()
        Bundle(self, action, run, idx, ranked).run()


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The engine of this process, from its environment."""
    return Engine(current())
