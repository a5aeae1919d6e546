"""Arithmetic of vectors: pure.

The law: what leaves an embedder passes `unit`, so that no row of a wrong shape and no number that is not finite gets
into a table, where it would spoil every search.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tasks.errors import EmbeddingError
from .protocol import Vectors

EVEN = 1e-6  # what a square may be away from 1, and is a vector of length 1


def unit(rows: Any, count: int, dims: int, model: str) -> Vectors:
    """The rows as float32 of shape (count, dims), each divided by its length.

    Raises EmbeddingError where the shape is another one, a number is not finite, or a row has no length.
    """
    found = np.asarray(rows, dtype=np.float32)
    if count == 0 and found.size == 0:
        return np.empty((0, dims), dtype=np.float32)
    if found.shape != (count, dims):
        raise EmbeddingError(
            model,
            f"it answered with vectors of shape {found.shape} for {count} texts, and {(count, dims)} was expected",
        )
    squares = np.einsum("ij,ij->i", found, found, dtype=np.float64)
    even = np.abs(squares - 1.0) < EVEN
    if even.all():  # mostly: they pass here when they leave an embedder, and again before they are asked for
        return found
    lengths = np.where(even, 1.0, np.sqrt(squares))
    if not (np.isfinite(lengths).all() and lengths.all()):
        wrong = ~np.isfinite(lengths) | (lengths == 0)
        raise EmbeddingError(
            model,
            f"the vector of text {int(np.argmax(wrong))} has no direction (zero, or a number that is not finite)",
        )
    units: Vectors = (found / lengths[:, None]).astype(np.float32)
    return units
