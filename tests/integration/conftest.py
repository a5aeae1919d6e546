"""Fixtures of several files of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from memories import opened
from stack import Stack

from trellis.memory.connections import MemoryDatabase


@pytest.fixture
def database(stack: Stack) -> Iterator[MemoryDatabase]:
    """The memory's pool of the test's own database."""
    with opened(stack) as found:
        yield found
