"""Memories for tests: a database of their own, and an embedder that hashes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stack import Stack

from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders.hashing import HashingEmbedder

EMBEDDER = HashingEmbedder(64)


@contextmanager
def opened(stack: Stack) -> Iterator[MemoryDatabase]:
    """The memory's pool of a stack."""
    database = MemoryDatabase(stack.settings)
    try:
        yield database
    finally:
        database.close()
