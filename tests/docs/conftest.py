"""Fixtures for the documentation's tests; see book.py for how a page is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from book import environment
from forks import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts programs."""
    found = Zygote(environment())
    yield found
    found.close()
