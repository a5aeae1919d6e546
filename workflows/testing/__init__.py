"""Test workflows without servers: `with Runner() as client:` and then as with a `Client`.

The law: the same definitions, the same client, the same engine; only the journal is in memory and the clock in the
hands of the test. A suite holds it to the real one (tests/conformance).
"""

from __future__ import annotations

from ...tasks.errors import NotInProcess, Stalled
from .bodies import WorkerCrash
from .runner import Runner

__all__ = ["NotInProcess", "Runner", "Stalled", "WorkerCrash"]
