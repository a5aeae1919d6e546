"""What the system remembers for people and agents.

The audit log: append-only, sealed, written in the transaction of what it records.
"""

if not __name__.startswith("trellis."):
    raise ImportError("import trellis.memory, not memory: the repository's root is on sys.path")

from .actions import AuditAction, Outcome
from .audit import AuditLog, Entry, record
from .history import AuditRow, Filter, History
from .verifying import Verified

__all__ = [
    "AuditAction",
    "AuditLog",
    "AuditRow",
    "Entry",
    "Filter",
    "History",
    "Outcome",
    "Verified",
    "record",
]
