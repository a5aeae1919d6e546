"""The one bit of arithmetic that the bodies and the model share."""

from __future__ import annotations

from typing import Any


def total(parts: list[Any]) -> int:
    """Numbers and lists of numbers, added up; anything else (an artifact) counts nothing."""
    found = 0
    for part in parts:
        found += total(part) if isinstance(part, list) else part if isinstance(part, int) else 0
    return found
