"""What the system remembers for people and agents.

    from trellis.memory import Scope, VectorMemory
    from trellis.memory.embedders.hashing import HashingEmbedder

    facts = VectorMemory(HashingEmbedder(), Scope("acme", "ann"))
    facts.store("drink", "Ann likes green tea")
    facts.search("what does Ann drink?")

Facts by key, episodes in order, the context of a task, and all of them together; in Postgres with pgvector, scoped to
a tenant and an agent. What has vectors loads numpy, so these names are imported when they are first used.

The audit log: append-only, sealed, written in the transaction of what it records.
"""

if not __name__.startswith("trellis."):
    raise ImportError("import trellis.memory, not memory: the repository's root is on sys.path")

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .actions import AuditAction, Outcome
from .audit import AuditLog, Entry, record
from .history import AuditRow, Filter, History
from .verifying import Verified

if TYPE_CHECKING:
    from .bulk import import_jsonl, import_parquet
    from .drafts import Options
    from .entries import Filters, Hit, Stored
    from .episodic import EpisodicMemory
    from .exporting import export
    from .hybrid import HybridMemory
    from .protocol import MemoryProtocol
    from .scope import Scope
    from .vector import VectorMemory
    from .working import WorkingMemory

_HOMES = {
    "EpisodicMemory": "episodic",
    "Filters": "entries",
    "Hit": "entries",
    "HybridMemory": "hybrid",
    "MemoryProtocol": "protocol",
    "Options": "drafts",
    "Scope": "scope",
    "Stored": "entries",
    "VectorMemory": "vector",
    "WorkingMemory": "working",
    "export": "exporting",
    "import_jsonl": "bulk",
    "import_parquet": "bulk",
}

__all__ = [
    "AuditAction",
    "AuditLog",
    "AuditRow",
    "Entry",
    "EpisodicMemory",
    "Filter",
    "Filters",
    "History",
    "Hit",
    "HybridMemory",
    "MemoryProtocol",
    "Options",
    "Outcome",
    "Scope",
    "Stored",
    "VectorMemory",
    "Verified",
    "WorkingMemory",
    "export",
    "import_jsonl",
    "import_parquet",
    "record",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
