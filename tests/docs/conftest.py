"""Fixtures for the documentation's tests; see book.py for how a page is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import forks


@pytest.fixture(scope="session")
def zygote() -> forks.Zygote:
    """Starts programs."""
    return forks.zygote()
